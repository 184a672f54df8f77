"""Files made to waste time and memory, and files that only look like DICOM."""

import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from make_series import a_series, a_volume, edit, setting
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from storage.dicom_file import read_file
from storage.dicom_read import read_series
from storage.errors import IngestError
from storage.series import find_sources


@pytest.fixture
def files(tmp_path):
    return a_series(a_volume(), tmp_path / "series")


def deflated(file, data_set):
    """The file's meta information, and `data_set` deflated behind it."""
    edit(
        file, lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian)
    )
    blob = file.read_bytes()
    meta_end = 144 + int.from_bytes(blob[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    file.write_bytes(blob[:meta_end] + packer.compress(data_set) + packer.flush())


def plain(file):
    """The data set as explicit VR, little endian, without meta information."""
    blob = file.read_bytes()
    return blob[144 + int.from_bytes(blob[140:144], "little") :]


def refusal_in_little_memory(files, message, error=IngestError):
    tracemalloc.start()
    with pytest.raises(error, match=message) as refused:
        read_series(files)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26
    return str(refused.value)


def test_a_deflated_series_is_read(files):
    expected = read_series(files)[0].hu
    for file in files:
        data_set = plain(file)
        deflated(file, data_set)
        assert b"ABDOMEN" not in file.read_bytes()
    np.testing.assert_array_equal(read_series(files)[0].hu, expected)


def test_a_deflated_bomb_in_the_header_is_refused(files):
    data_set = plain(files[2])
    huge = b"\x09\x00\x10\x00LO\x04\x00ACME" + b"\x09\x00\x01\x10OB\x00\x00" + b"\0\0\0\x40"
    deflated(files[2], data_set.split(b"\x10\x00\x10\x00PN", 1)[0] + huge + bytes(1 << 28))
    assert files[2].stat().st_size < 1 << 20
    reason = refusal_in_little_memory(files, "deflated header breaks off within")
    assert files[2].name in reason


def test_a_deflated_bomb_in_the_pixels_is_refused(files):
    data_set = plain(files[2])
    at = data_set.index(b"\xe0\x7f\x10\x00OW\0\0") + 8
    deflated(files[2], data_set[:at] + (1 << 28).to_bytes(4, "little") + bytes(1 << 28))
    reason = refusal_in_little_memory(files, "has 268435456 bytes; expected 2880")
    assert files[2].name in reason


def test_deflated_pixels_that_claim_more_than_the_bound_are_refused(files):
    data_set = plain(files[2])
    at = data_set.index(b"\xe0\x7f\x10\x00OW\0\0") + 8
    deflated(files[2], data_set[:at] + (1 << 30).to_bytes(4, "little") + bytes(1 << 26))
    refusal_in_little_memory(files, "has 1073741824 bytes by its length")


def test_deflated_data_that_are_corrupt_or_cut_are_refused(files):
    data_set = plain(files[2])
    deflated(files[2], data_set)
    blob = files[2].read_bytes()
    for broken in (blob[:-40], blob[:-1000], blob[:400] + bytes(400) + blob[800:]):
        files[2].write_bytes(broken)
        with pytest.raises(IngestError, match=files[2].name):
            read_series(files)


def nested(depth, *, defined):
    """An element of group 0009 with `depth` sequences in sequences."""
    inner = b""
    for _ in range(depth):
        if defined:
            item = b"\xfe\xff\x00\xe0" + len(inner).to_bytes(4, "little") + inner
            length = len(item).to_bytes(4, "little")
        else:
            end = b"\xfe\xff\x0d\xe0\0\0\0\0"
            item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner + end + b"\xfe\xff\xdd\xe0\0\0\0\0"
            length = b"\xff\xff\xff\xff"
        inner = b"\x08\x00\x40\x11SQ\0\0" + length + item
    return inner


@pytest.mark.parametrize("defined", [True, False])
@pytest.mark.parametrize(("depth", "refused"), [(20, False), (200, True), (5000, True)])
def test_deep_sequences_are_refused_and_reasonable_ones_read(files, depth, refused, defined):
    blob = files[2].read_bytes()
    at = blob.index(b"\x10\x00\x10\x00PN")
    files[2].write_bytes(blob[:at] + nested(depth, defined=defined) + blob[at:])
    if refused:
        message = refusal_in_little_memory(files, "nested more than 64 deep")
        assert files[2].name in message
        ((source,), refusals) = find_sources(files[0].parent)
        found = [*(str(one.path) for one in refusals), *source.files]
        assert len(found) == len(files)
    else:
        _, headers = read_series(files)
        assert "ReferencedImageSequence" in headers[2]


def test_a_file_of_nothing_but_zeros_is_refused_at_once(tmp_path):
    path = tmp_path / "zeros.dcm"
    path.write_bytes(bytes(1 << 26))
    meta = bytes(128) + b"DICM"
    (tmp_path / "almost.dcm").write_bytes(meta + bytes(1 << 22))
    sources, refusals = find_sources(tmp_path)
    assert sources == []
    assert [one.path.name for one in refusals] == ["almost.dcm", "zeros.dcm"]


def test_a_name_alone_makes_no_dicom(tmp_path):
    for name, content in {"a.dcm": b"", "b.IMA": b"no image at all" * 50, "c.dcm": b"x"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.txt").write_bytes(b"no image at all" * 50)
    sources, refusals = find_sources(tmp_path)
    assert sources == []
    assert [one.path.name for one in refusals] == ["a.dcm", "b.IMA", "c.dcm"]
    assert all("does not begin as DICOM" in one.reason for one in refusals)


def test_the_walk_finds_what_pydicom_finds_in_every_header(files):
    item = Dataset()
    item.CodeValue = "1"
    for index, file in enumerate(files):
        edit(file, setting(ProcedureCodeSequence=[item, item]))
        edit(file, setting(PatientComments="x" * 40_000, AdditionalPatientHistory="y" * 40_000))
        if index % 2:
            dataset = pydicom.dcmread(file)
            dataset["ProcedureCodeSequence"].is_undefined_length = True
            for one in dataset.ProcedureCodeSequence:
                one.is_undefined_length_sequence_item = True
            pydicom.dcmwrite(file, dataset)
        walked = read_file(file)
        expected = pydicom.dcmread(file, stop_before_pixels=True)
        assert walked.syntax == ExplicitVRLittleEndian
        assert list(walked.header.keys()) == list(expected.keys())
        for element in expected:
            assert walked.header[element.tag] == element


def test_elements_out_of_order_and_unknown_representations_are_left_to_pydicom(files):
    expected = read_series(files)[0].hu
    blob = files[2].read_bytes()
    at = blob.index(b"\x10\x00\x10\x00PN")
    files[2].write_bytes(blob[:at] + b"\x08\x00\x70\x00LO\x04\x00ACME" + blob[at:])
    files[3].write_bytes(
        files[3].read_bytes().replace(b"\x10\x00\x10\x00PN", b"\x10\x00\x10\x00ZZ")
    )
    np.testing.assert_array_equal(read_series(files)[0].hu, expected)
