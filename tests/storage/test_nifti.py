"""NIfTI in and out, against SimpleITK (which uses LPS) and nibabel."""

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from storage.errors import GeometryError, IngestError
from storage.grid import canonical, resample
from storage.nifti import read_nifti, write_nifti
from storage.volume import Volume

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [20, -10, 35], degrees=True).as_matrix() * [
    0.8,
    0.9,
    2,
]
OBLIQUE[:3, 3] = (-71.5, 33.25, 412.125)


def hu_xyz(dtype=np.int16, shape=(7, 6, 5)):
    return np.random.default_rng(5).integers(-1024, 3000, shape).astype(dtype)


def save(path, data, affine=OBLIQUE, *, sform=1, qform=1, slope=None, intercept=None):
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=sform)
    image.set_qform(affine if qform else None, code=qform)
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
    nib.save(image, path)
    return path


def assert_as_simpleitk_reads_it(volume, path, atol=2e-5):
    """The qform's quaternion is float32: hence a tolerance of 20 nm."""
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.hu, sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.affine[:3, 3], image.GetOrigin(), atol=atol)
    columns = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    np.testing.assert_allclose(volume.affine[:3, :3], columns[:, ::-1], atol=atol)


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 1)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_voxels_and_points_are_those_of_simpleitk(tmp_path, suffix, sform, qform):
    path = save(tmp_path / f"scan{suffix}", hu_xyz(), sform=sform, qform=qform)
    volume = read_nifti(path)
    assert volume.hu.dtype == np.int16
    assert volume.hu.flags.c_contiguous
    assert_as_simpleitk_reads_it(volume, path)


def test_scale_and_intercept_are_applied_and_integers_stay_integers(tmp_path):
    path = save(tmp_path / "whole.nii", hu_xyz(np.uint16) % 4000, slope=1, intercept=-1024)
    volume = read_nifti(path)
    assert volume.hu.dtype == np.int16
    assert_as_simpleitk_reads_it(volume, path)
    path = save(tmp_path / "half.nii", hu_xyz(np.int16), slope=0.5, intercept=-1024)
    volume = read_nifti(path)
    assert volume.hu.dtype == np.float32
    assert_as_simpleitk_reads_it(volume, path)


@pytest.mark.parametrize(
    ("stored", "read"),
    [(np.uint8, np.int16), (np.int32, np.int16), (np.float32, np.int16), (np.float64, np.int16)],
)
def test_other_types_become_int16_if_nothing_is_lost(tmp_path, stored, read):
    data = (hu_xyz() % 200).astype(stored)
    volume = read_nifti(save(tmp_path / "scan.nii", data))
    assert volume.hu.dtype == read
    np.testing.assert_array_equal(volume.hu, data.T)
    if np.issubdtype(stored, np.floating):
        assert read_nifti(save(tmp_path / "scan.nii", data + stored(0.25))).hu.dtype == np.float32
    elif stored is np.int32:
        assert read_nifti(save(tmp_path / "scan.nii", data + 40000)).hu.dtype == np.float32


def test_a_fourth_dimension_of_one_is_dropped_and_a_longer_one_refused(tmp_path):
    volume = read_nifti(save(tmp_path / "one.nii", hu_xyz()[..., None]))
    np.testing.assert_array_equal(volume.hu, hu_xyz().T)
    path = save(tmp_path / "two.nii", hu_xyz(shape=(7, 6, 5, 2)))
    with pytest.raises(GeometryError, match=r"two\.nii: dim is \(7, 6, 5, 2\)"):
        read_nifti(path)


def test_geometry_that_nobody_can_use_is_refused(tmp_path):
    with pytest.raises(GeometryError, match="sform_code and qform_code are 0"):
        read_nifti(save(tmp_path / "none.nii", hu_xyz(), sform=0, qform=0))
    sheared, infinite = OBLIQUE.copy(), OBLIQUE.copy()
    sheared[0, 1] += 0.2
    infinite[1, 3] = np.inf
    with pytest.raises(GeometryError, match=r"sheared\.nii: the grid is sheared"):
        read_nifti(save(tmp_path / "sheared.nii", hu_xyz(), sheared, qform=0))
    with pytest.raises(GeometryError, match="expected 4x4 finite numbers"):
        read_nifti(save(tmp_path / "infinite.nii", hu_xyz(), infinite, qform=0))
    image = nib.load(save(tmp_path / "metres.nii", hu_xyz()))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "in_metres.nii")
    with pytest.raises(GeometryError, match="xyzt_units say meter; expected mm"):
        read_nifti(tmp_path / "in_metres.nii")


def test_voxels_that_are_no_hu_are_refused(tmp_path):
    data = hu_xyz(np.float32)
    data[1, 2, 3] = np.nan
    with pytest.raises(IngestError, match="1 voxels are not finite"):
        read_nifti(save(tmp_path / "nan.nii", data))
    with pytest.raises(IngestError, match="datatype is complex64"):
        read_nifti(save(tmp_path / "complex.nii", hu_xyz().astype(np.complex64)))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_file_cut_off_anywhere_is_refused_by_name(tmp_path, kept):
    for name in ("scan.nii", "scan.nii.gz"):
        path = save(tmp_path / name, hu_xyz())
        blob = path.read_bytes()
        path.write_bytes(blob[: int(len(blob) * kept)])
        with pytest.raises(IngestError, match=name):
            read_nifti(path)
    with pytest.raises(IngestError, match=r"nowhere\.nii"):
        read_nifti(tmp_path / "nowhere.nii")
    (tmp_path / "text.nii").write_text("no image " * 100)
    with pytest.raises(IngestError, match=r"text\.nii"):
        read_nifti(tmp_path / "text.nii")


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.int32, np.bool_])
def test_what_is_written_simpleitk_reads_at_the_same_points(tmp_path, dtype):
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ OBLIQUE
    volume = Volume((hu_xyz().T % 120).astype(dtype), affine)
    path = tmp_path / "out.nii.gz"
    write_nifti(volume, path)
    assert nib.load(path).get_data_dtype() == (np.uint8 if dtype is np.bool_ else dtype)
    assert_as_simpleitk_reads_it(volume, path)
    back = read_nifti(path)
    np.testing.assert_array_equal(back.hu, volume.hu)
    np.testing.assert_allclose(back.affine, affine, atol=2e-5)


def test_with_a_source_the_very_affine_and_order_of_axes_come_back(tmp_path):
    affine = np.diag([-0.8, 0.8, 2.5, 1.0])[:, [1, 2, 0, 3]]  # coronal: x, y, z = A, S, L
    affine[:3, 3] = (11.1, -22.2, 33.3)
    source = save(tmp_path / "source.nii.gz", hu_xyz(), affine)
    volume = canonical(read_nifti(source))
    assert volume.shape != read_nifti(source).shape
    for values in (volume.hu, volume.hu > 100, volume.hu.astype(np.float32) + 0.25):
        write_nifti(Volume(values, volume.affine), tmp_path / "out.nii", source_path=source)
        image, original = nib.load(tmp_path / "out.nii"), nib.load(source)
        np.testing.assert_array_equal(image.affine, original.affine)
        np.testing.assert_array_equal(image.get_qform(), original.get_qform())
        for code in ("sform_code", "qform_code"):
            assert image.header[code] == original.header[code]
        at_source = canonical(Volume(np.asanyarray(image.dataobj).T, read_nifti(source).affine))
        np.testing.assert_array_equal(at_source.hu, values)


def test_a_scaled_source_does_not_scale_the_output(tmp_path):
    source = save(tmp_path / "source.nii", hu_xyz(), slope=2, intercept=-7)
    volume = read_nifti(source)
    write_nifti(volume, tmp_path / "out.nii", source_path=source)
    np.testing.assert_array_equal(read_nifti(tmp_path / "out.nii").hu, volume.hu)


def test_a_volume_on_another_grid_than_its_source_is_refused(tmp_path):
    source = save(tmp_path / "source.nii", hu_xyz())
    other = resample(read_nifti(source), (2, 2, 2))
    with pytest.raises(GeometryError, match="does not lie on the grid of"):
        write_nifti(other, tmp_path / "out.nii", source_path=source)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    volume = Volume(hu_xyz().T, OBLIQUE)
    write_nifti(volume, tmp_path / "out.nii.gz")
    before = (tmp_path / "out.nii.gz").read_bytes()
    assert gzip.decompress(before)
    with pytest.raises(nib.spatialimages.HeaderDataError):
        write_nifti(Volume(volume.hu.astype(np.float16), OBLIQUE), tmp_path / "out.nii.gz")
    with pytest.raises(ValueError, match=r"ends in \.nii"):
        write_nifti(volume, tmp_path / "out.img")
    assert [p.name for p in tmp_path.iterdir()] == ["out.nii.gz"]
    assert (tmp_path / "out.nii.gz").read_bytes() == before


HOSTILE = {
    "dim of a terabyte": ({"dim": [3, 32767, 32767, 1024, 1, 1, 1, 1]}, "voxels; expected 1 to"),
    "dim beyond the file": ({"dim": [3, 512, 512, 900, 1, 1, 1, 1]}, "ask for 471859552 bytes"),
    "dim zero": ({"dim": [3, 7, 0, 5, 1, 1, 1, 1]}, "0 voxels"),
    "dim negative": ({"dim": [3, 7, -6, -5, 1, 1, 1, 1]}, r"hostile\.nii"),
    "vox_offset far away": ({"vox_offset": 1e9}, "vox_offset is 1000000000.0"),
    "vox_offset not finite": ({"vox_offset": np.nan}, "vox_offset is nan"),
    "vox_offset past the end": ({"vox_offset": 1e6}, r"hostile\.nii"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_asks_for_more_than_the_file_holds_is_refused_unread(tmp_path, suffix, case):
    fields, message = HOSTILE[case]
    image = nib.Nifti1Image(hu_xyz(), OBLIQUE)
    image.header["vox_offset"] = 352
    header = image.header.structarr.copy()
    for name, value in fields.items():
        header[name] = value
    blob = header.tobytes() + bytes(4) + hu_xyz().tobytes("F")
    path = tmp_path / f"hostile{suffix}"
    path.write_bytes(gzip.compress(blob) if suffix.endswith("gz") else blob)
    if case == "dim beyond the file" and suffix == ".nii.gz":
        message = r"hostile\.nii\.gz"
    tracemalloc.start()
    with pytest.raises((GeometryError, IngestError), match=message):
        read_nifti(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


@pytest.mark.parametrize("length", [1 << 30, 7, -8])
def test_an_extension_that_would_inflate_without_end_is_refused(tmp_path, length):
    image = nib.Nifti1Image(hu_xyz(), OBLIQUE)
    header = image.header.structarr.copy()
    header["vox_offset"] = 4096
    extension = length.to_bytes(4, "little", signed=True) + bytes(4)
    with gzip.open(tmp_path / "bomb.nii.gz", "wb") as file:
        file.write(header.tobytes() + b"\1\0\0\0" + extension)
        for _ in range(64):
            file.write(bytes(1 << 22))
    tracemalloc.start()
    with pytest.raises(IngestError, match=f"an extension has {length} bytes"):
        read_nifti(tmp_path / "bomb.nii.gz")
    assert tracemalloc.get_traced_memory()[1] < 1 << 25
    tracemalloc.stop()


def test_a_gzip_bomb_behind_a_small_volume_is_not_inflated(tmp_path):
    plain = save(tmp_path / "scan.nii", hu_xyz()).read_bytes()
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as file:
        file.write(plain)
        for _ in range(64):
            file.write(bytes(1 << 22))
    tracemalloc.start()
    volume = read_nifti(tmp_path / "bomb.nii.gz")
    assert tracemalloc.get_traced_memory()[1] < 1 << 25
    tracemalloc.stop()
    np.testing.assert_array_equal(volume.hu, hu_xyz().T)
