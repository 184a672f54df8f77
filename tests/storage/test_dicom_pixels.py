"""Pixels in every transfer syntax, and pixels that are not what the header says."""

import base64
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
from make_enhanced import enhanced, save
from make_series import (
    COLUMNS,
    ROWS,
    a_series,
    a_volume,
    as_jpeg_of_twelve_bits,
    compress_by_gdcm,
    edit,
    setting,
    stored_as,
    with_frames,
)
from pydicom.encaps import generate_fragments
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    MPEG2MPML,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from storage.dicom_read import read_series
from storage.errors import GeometryError, IngestError
from storage.volume import Volume

# What a compressed slice is stored as before it is compressed.
STORED = {
    "unsigned, 16 bits": stored_as(np.uint16, intercept=-1024),
    "unsigned, 12 bits": stored_as(np.uint16, intercept=-1024, bits_stored=12),
    "signed, 16 bits": stored_as(np.int16),
    "signed, 13 bits": stored_as(np.int16, bits_stored=13),
}
BY_GDCM = ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEG2000Lossless", "RLELossless"]

# 40 * row + 3 * column, 32 x 32, by OpenJPH, a second implementation of HTJ2K.
HTJ2K_FRAME = base64.b64decode(
    "/0//UQApQAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUE"
    "BEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAALIAAf+TwAAm"
    "6/wFB3QAwAASwAATAOwAh3QAtv0Ch3QAwAATQAATgNb+AAJ0ANpq+wCDVADAABPAABVgqqqgp8J1AGzZ2Nj+wDGB"
    "7LYAwAAVcAAFpCRJkufAp6enQngAsjKZTCaTyf79iEB79iEB7LoAwAAtCAAF0AAAAAAA+f8p6enp6enp4nwATsdx"
    "HMdxHMdxHMdx/v94YEIHv2EIHv2EIHv2EIHsswH/2Q=="
)


@pytest.fixture
def volume():
    return a_volume()


@pytest.fixture
def files(volume, tmp_path):
    return a_series(volume, tmp_path / "series")


def by_simpleitk(files):
    return sitk.GetArrayFromImage(sitk.ReadImage([str(file) for file in files]))


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_pixels_by_pydicom_are_decoded_exactly(files, volume, syntax, stored):
    for file in files:
        edit(file, STORED[stored])
        edit(file, lambda dataset: dataset.compress(syntax))
    np.testing.assert_array_equal(read_series(files)[0].hu, volume.hu)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("syntax", BY_GDCM)
def test_lossless_pixels_by_gdcm_are_decoded_exactly(files, volume, syntax, stored):
    for file in files:
        edit(file, STORED[stored])
        compress_by_gdcm(file, syntax)
    np.testing.assert_array_equal(read_series(files)[0].hu, volume.hu)


def test_eight_bit_pixels_are_read(tmp_path):
    volume = a_volume(low=-100, high=150)
    files = a_series(volume, tmp_path / "series")
    for file, syntax in zip(
        files[2:], (RLELossless, JPEGLSLossless, JPEG2000Lossless), strict=False
    ):
        edit(file, stored_as(np.uint8, intercept=-100, bits_stored=8))
        edit(file, lambda dataset, syntax=syntax: dataset.compress(syntax))
    for file in (files[0], files[1], files[5]):
        edit(file, stored_as(np.uint8, intercept=-100, bits_stored=8))
    compress_by_gdcm(files[1], "JPEGLosslessProcess14_1")
    np.testing.assert_array_equal(read_series(files)[0].hu, volume.hu)
    np.testing.assert_array_equal(by_simpleitk(files), volume.hu)


def smooth(volume):
    z, y, x = np.indices(volume.shape)
    hu = 300 * np.sin(y / 9 + z) + 400 * np.cos(x / 11) + 100
    return Volume(hu.astype(np.int16), volume.affine)


def test_lossy_jpeg_of_twelve_bits_is_decoded_as_simpleitk_decodes_it(volume, tmp_path):
    volume = smooth(volume)
    files = a_series(volume, tmp_path / "series")
    for file in files:
        edit(file, stored_as(np.uint16, intercept=-1024, bits_stored=12))
        edit(file, as_jpeg_of_twelve_bits)
    result = read_series(files)[0].hu
    np.testing.assert_array_equal(result, by_simpleitk(files))
    assert np.abs(result - volume.hu).max() < 30


def test_lossy_jpeg_of_eight_bits_is_decoded_as_simpleitk_decodes_it(volume, tmp_path):
    volume = Volume((smooth(volume).hu // 8).astype(np.int16), volume.affine)
    files = a_series(volume, tmp_path / "series")
    for file in files:
        edit(file, stored_as(np.uint8, intercept=-100, bits_stored=8))
        compress_by_gdcm(file, "JPEGBaselineProcess1")
    result = read_series(files)[0].hu
    # The inverse cosine transform is not specified to the last bit.
    np.testing.assert_allclose(result, by_simpleitk(files), atol=1)
    assert np.abs(result - volume.hu).max() < 8


@pytest.mark.parametrize(
    ("syntax", "how"), [(JPEG2000, {"j2k_cr": [10]}), (JPEGLSNearLossless, {"jls_error": 3})]
)
def test_lossy_jpeg_2000_and_jpeg_ls_are_decoded_as_simpleitk_decodes_them(
    volume, tmp_path, syntax, how
):
    volume = smooth(volume)
    files = a_series(volume, tmp_path / "series")
    for file in files:
        edit(file, stored_as(np.uint16, intercept=-1024))
        edit(file, lambda dataset: dataset.compress(syntax, **how))
    result = read_series(files)[0].hu
    np.testing.assert_array_equal(result, by_simpleitk(files))
    assert 0 < np.abs(result - volume.hu).max() < 60


@pytest.mark.parametrize("syntax", [HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL])
def test_high_throughput_jpeg_2000_is_decoded(files, syntax):
    rows, columns = np.indices((32, 32))
    for file in files:
        edit(file, stored_as(np.uint16, intercept=-1024))
        edit(file, setting(Rows=32, Columns=32))
        edit(file, with_frames([HTJ2K_FRAME], syntax))
    expected = np.broadcast_to(40 * rows + 3 * columns - 1024, (6, 32, 32))
    np.testing.assert_array_equal(read_series(files)[0].hu, expected)


def test_a_jpeg_2000_frame_in_the_boxes_of_a_jp2_file_is_decoded(files, volume):
    def boxed(dataset):
        dataset.compress(JPEG2000Lossless)
        (_, frame) = generate_fragments(dataset.PixelData)
        boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
        with_frames([boxes + b"\0\0\0\0jp2c" + frame], JPEG2000Lossless)(dataset)

    for file in files:
        edit(file, boxed)
    np.testing.assert_array_equal(read_series(files)[0].hu, volume.hu)


@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize("fragments", [1, 3])
def test_frames_are_told_apart_by_their_fragments_or_the_offset_table(
    tmp_path, fragments, has_table
):
    volume = a_volume()
    dataset = enhanced(volume)
    dataset.compress(JPEG2000Lossless)
    frames = list(generate_fragments(dataset.PixelData))[1:]
    change = with_frames(frames, JPEG2000Lossless, fragments_per_frame=fragments, has_bot=has_table)
    change(dataset)
    path = save(dataset, tmp_path / "whole.dcm")
    if fragments == 1 or has_table:
        np.testing.assert_array_equal(read_series([path])[0].hu, volume.hu)
    else:
        with pytest.raises(IngestError, match="18 fragments and 0 offsets"):
            read_series([path])


def test_one_frame_may_come_in_many_fragments(files, volume):
    def change(dataset):
        dataset.compress(JPEGLSLossless)
        (_, frame) = generate_fragments(dataset.PixelData)
        with_frames([frame], JPEGLSLossless, fragments_per_frame=5, has_bot=False)(dataset)

    for file in files:
        edit(file, change)
    np.testing.assert_array_equal(read_series(files)[0].hu, volume.hu)


def replaced(old, new):
    """Replace bytes within the frame."""

    def change(dataset):
        (_, frame) = generate_fragments(dataset.PixelData)
        assert frame.count(old) == 1
        with_frames([frame.replace(old, new)], dataset.file_meta.TransferSyntaxUID)(dataset)

    return change


def size(rows, columns):
    return rows.to_bytes(2, "big") + columns.to_bytes(2, "big")


def wide(number):
    return number.to_bytes(4, "big")


LYING = {
    "JPEG 2000 of another size": (
        "JPEG2000Lossless",
        replaced(
            b"\xff\x51\0\x29\0\0" + wide(COLUMNS) + wide(ROWS),
            b"\xff\x51\0\x29\0\0" + wide(60000) + wide(60000),
        ),
        "2500500 tiles",
    ),
    "JPEG 2000 of many tiles": (
        "JPEG2000Lossless",
        replaced(
            wide(COLUMNS) + wide(ROWS) + bytes(8) + wide(COLUMNS) + wide(ROWS),
            wide(COLUMNS) + wide(ROWS) + bytes(8) + wide(1) + wide(1),
        ),
        "1440 tiles",
    ),
    "JPEG of another size": (
        "JPEGLosslessProcess14_1",
        replaced(size(ROWS, COLUMNS), size(65535, 65535)),
        "65535 x 65535 pixels",
    ),
    "JPEG of another process": (
        "JPEGLosslessProcess14_1",
        replaced(b"\xff\xc3\0\x0b", b"\xff\xc2\0\x0b"),
        "process FFC2",
    ),
    "JPEG-LS of another size": (
        "JPEGLSLossless",
        replaced(size(ROWS, COLUMNS), size(65535, 65535)),
        "65535 x 65535 pixels",
    ),
    "JPEG-LS in place of JPEG 2000": (
        "JPEGLSLossless",
        lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", JPEG2000Lossless),
        "does not begin as a JPEG 2000",
    ),
    "fewer rows than there are": (
        "JPEG2000Lossless",
        setting(Rows=ROWS - 1),
        "36 x 40 pixels.*expected 35 x 40",
    ),
    "fewer RLE rows than there are": ("RLELossless", setting(Rows=ROWS - 1), "OUTPUT_TOO_SMALL"),
    "more RLE rows than there are": ("RLELossless", setting(Rows=ROWS + 1), "expected 2960"),
    "a syntax of several components": (
        "JPEG2000Lossless",
        lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", JPEG2000MC),
        r"TransferSyntaxUID \(0002,0010\) is JPEG 2000 Part 2",
    ),
    "a film": (
        "JPEG2000Lossless",
        lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", MPEG2MPML),
        r"TransferSyntaxUID \(0002,0010\) is MPEG2",
    ),
}


@pytest.mark.parametrize("case", LYING)
def test_a_frame_that_contradicts_the_header_is_refused_before_it_is_decoded(files, case):
    syntax, change, message = LYING[case]
    for file in files:
        edit(file, stored_as(np.uint16, intercept=-1024))
        compress_by_gdcm(file, syntax)
        edit(file, change)
    tracemalloc.start()
    with pytest.raises((IngestError, GeometryError), match=message) as refused:
        read_series(files)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    assert files[0].name in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "message"), [(60000, r"Rows \(0028,0010\) is 60000"), (4096, "RLE segment")]
)
def test_an_rle_bomb_is_refused_before_memory_is_taken(files, rows, message):
    segment = bytes([129, 0] * 250)
    frame = np.array([2, 64, 64 + len(segment), *[0] * 13], "<u4").tobytes() + segment * 2
    for file in files:
        edit(file, setting(Rows=rows, Columns=rows))
        edit(file, with_frames([frame], RLELossless))
        assert file.stat().st_size < 4000
    tracemalloc.start()
    with pytest.raises(IngestError, match=message):
        read_series(files)
    untouched = len(files) * 4096 * 4096 * 2  # of the volume, which takes no memory till written
    assert tracemalloc.get_traced_memory()[1] < untouched + (1 << 24)
    tracemalloc.stop()


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
@pytest.mark.parametrize(
    "syntax", ["JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14_1", "RLELossless"]
)
def test_a_frame_cut_short_within_whole_fragments_is_refused(files, syntax, kept):
    def cut(dataset):
        (_, frame) = generate_fragments(dataset.PixelData)
        kept_bytes = frame[: 2 * int(len(frame) * kept / 2)]
        with_frames([kept_bytes], dataset.file_meta.TransferSyntaxUID)(dataset)

    edit(files[2], stored_as(np.uint16, intercept=-1024))
    compress_by_gdcm(files[2], syntax)
    edit(files[2], cut)
    with pytest.raises(IngestError, match="cannot be decoded: frame 1") as refused:
        read_series(files)
    assert files[2].name in str(refused.value)


ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
ENCAPSULATION = {
    "no items": (b"", "no offset table"),
    "no fragments": (ITEM + bytes(4), "no fragments"),
    "a fragment beyond the file": (ITEM + bytes(4) + ITEM + b"\xff\xff\xff\x7f", "within the file"),
    "an open fragment": (ITEM + bytes(4) + ITEM + b"\xff\xff\xff\xff", "within the file"),
    "no items but values": (b"\x01\x02\x03\x04" * 8, "expected fragments"),
    "many empty fragments": ((ITEM + bytes(4)) * 5000, "ends within its own header"),
}


@pytest.mark.parametrize("case", ENCAPSULATION)
def test_odd_encapsulation_is_refused(files, case):
    data, message = ENCAPSULATION[case]
    edit(files[2], with_frames([b"\0\0"], RLELossless))
    head, _ = files[2].read_bytes().split(ITEM, 1)
    files[2].write_bytes(head + data + END)
    with pytest.raises(IngestError, match=message) as refused:
        read_series(files)
    assert files[2].name in str(refused.value)


def test_pixels_longer_than_their_file_are_refused(files):
    blob = files[2].read_bytes()
    length = (ROWS * COLUMNS * 2).to_bytes(4, "little")
    at = blob.index(b"\xe0\x7f\x10\x00OW\0\0" + length) + 8
    files[2].write_bytes(blob[:at] + (1 << 30).to_bytes(4, "little") + blob[at + 4 :])
    with pytest.raises(IngestError, match="has 1073741824 bytes by its length, and at most 2880"):
        read_series(files)


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS + 1, 2 * ROWS])
def test_rows_that_are_not_those_of_the_pixels_are_refused(files, rows):
    for file in files:
        edit(file, setting(Rows=rows))
    with pytest.raises(IngestError, match=f"has 2880 bytes; expected {rows * COLUMNS * 2}"):
        read_series(files)


def test_floating_point_pixels_are_refused(files):
    def change(dataset):
        dataset.FloatPixelData = np.zeros((ROWS, COLUMNS), np.float32).tobytes()
        del dataset.PixelData

    edit(files[2], change)
    with pytest.raises(IngestError, match=r"PixelData \(7FE0,0010\) is missing"):
        read_series(files)
