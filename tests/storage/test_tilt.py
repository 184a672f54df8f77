"""Tilted gantries: upright volumes against a function that is known everywhere."""

import json

import numpy as np
import pydicom
import pytest
from make_series import a_series, edit, setting
from scipy import ndimage
from scipy.spatial.transform import Rotation

from storage.body import frame_origin
from storage.dicom_read import read_series
from storage.dicom_write import derived_headers, write_series
from storage.errors import GeometryError
from storage.grid import canonical, require_orthogonal, resample
from storage.provenance import provenance
from storage.series import find_sources, read_source
from storage.volume import Volume

SHAPE, SPACING = (12, 40, 48), np.array([3.0, 0.8, 0.7])
WAVES_MM = 30.0


def truth(points):
    """HU at points [..., 3] in LPS mm: waves of 30 mm along every axis."""
    x, y, z = np.moveaxis(points * (2 * np.pi / WAVES_MM), -1, 0)
    return 400 * np.sin(x + 0.3) + 300 * np.sin(y) + 200 * np.sin(z + 1)


# What linear interpolation by half a pixel may be off: h^2 / 8 times the second derivative.
BOUND_HU = (400 * 0.7**2 + 300 * 0.8**2) / 8 * (2 * np.pi / WAVES_MM) ** 2 + 1


def points_of(affine, shape):
    index = np.moveaxis(np.indices(shape), 0, -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def tilted(folder, degrees, axis="x"):
    """A series whose gantry is tilted, with the table moving along z; and its sheared affine."""
    rotation = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = np.stack([[0, 0, 1], rotation[:, 1], rotation[:, 0]], axis=1) * SPACING
    affine[:3, 3] = (-17, 23, 51)
    hu = np.rint(truth(points_of(affine, SHAPE))).astype(np.int16)
    upright = affine.copy()
    upright[:3, 0] = rotation[:, 2] * SPACING[0]
    files = a_series(Volume(hu, upright), folder)
    for index, file in enumerate(files):
        position = affine[:3, 3] + index * affine[:3, 0]
        edit(
            file,
            setting(
                ImagePositionPatient=[round(float(one), 8) for one in position],
                GantryDetectorTilt=round(-degrees, 1),
            ),
        )
    return files, affine, hu


CASES = [(-22.0, "x"), (5.7, "x"), (29.9, "x"), (12.0, "y"), (0.5, "x")]


@pytest.mark.parametrize(("degrees", "axis"), CASES)
def test_every_voxel_has_the_value_of_its_point(tmp_path, degrees, axis):
    files, affine, _ = tilted(tmp_path / "series", degrees, axis)
    volume, headers = read_series(files)
    require_orthogonal(volume.affine, "upright")
    assert volume.hu.dtype == np.int16
    assert len(headers) == len(volume.hu) == SHAPE[0]

    points = points_of(volume.affine, volume.shape)
    sheared = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    np.testing.assert_allclose(sheared[..., 0], np.indices(volume.shape)[0], atol=1e-6)
    within = ((sheared >= -1e-6) & (sheared <= np.array(SHAPE) - 1 + 1e-6)).all(axis=-1)
    assert np.abs(volume.hu - truth(points))[within].max() <= BOUND_HU
    beyond = ((sheared < -1) | (sheared > SHAPE)).any(axis=-1)
    assert (volume.hu[beyond] == -1024).all()
    # Nothing of the slices is lost: as many voxels as they have, but for their borders.
    assert within.sum() >= SHAPE[0] * (SHAPE[1] - 1) * (SHAPE[2] - 1)


@pytest.mark.parametrize(("degrees", "axis"), CASES)
def test_it_is_what_scipy_interpolates_on_the_sheared_grid(tmp_path, degrees, axis):
    files, affine, hu = tilted(tmp_path / "series", degrees, axis)
    volume, _ = read_series(files)
    points = points_of(volume.affine, volume.shape)
    sheared = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    sheared[..., 0] = np.rint(sheared[..., 0])
    within = ((sheared >= 0) & (sheared <= np.array(SHAPE) - 1)).all(axis=-1)
    expected = ndimage.map_coordinates(hu.astype(float), sheared[within].T, order=1)
    np.testing.assert_allclose(volume.hu[within], expected, atol=0.6)


def test_a_tilt_of_whole_pixels_changes_no_value(tmp_path):
    files, _, hu = tilted(tmp_path / "series", 0.0)
    for index, file in enumerate(files):
        moved = [-17 + 0.7 * index, 23 - 1.6 * index, 51 + 3 * index]
        edit(file, setting(ImagePositionPatient=moved, GantryDetectorTilt=None))
    volume, _ = read_series(files)
    assert volume.shape == (12, 40 + 22, 48 + 11)
    for index in range(12):
        top, left = 2 * (11 - index), index
        np.testing.assert_array_equal(volume.hu[index, top : top + 40, left : left + 48], hu[index])
    np.testing.assert_allclose(volume.affine[:3, 3], [-17, 23 - 1.6 * 11, 51], atol=1e-9)


def test_the_volume_says_what_was_done(tmp_path):
    files, _, _ = tilted(tmp_path / "series", -22.0)
    volume, _ = read_series(files)
    (step,) = volume.steps
    assert step["step"] == "correct gantry tilt"
    assert step["degrees"] == pytest.approx(22, abs=0.01)
    straight, _, _ = tilted(tmp_path / "straight", 0.0)
    assert read_series(straight)[0].steps == ()


def test_the_correction_is_a_step_of_the_provenance(tmp_path):
    files, _, _ = tilted(tmp_path / "series", -22.0)
    ((source,), _) = find_sources(files[0].parent)
    read, headers = read_source(source)
    own = canonical(read)
    body = np.ones(own.shape, bool)
    told = provenance(source, headers, read, own, own, body, frame_origin(own, body))
    steps = [step["step"] for step in told["steps"]]
    assert steps[:3] == ["rescale to HU", "correct gantry tilt", "reorder axes"]
    assert "22.0" in json.dumps(told)


def test_it_can_be_resampled_and_written_beside_its_source(tmp_path):
    files, _, _ = tilted(tmp_path / "series", -22.0)
    volume, headers = read_series(files)
    grid = resample(volume, (2.0, 2.0, 2.0))
    inner = grid.hu[4:-4, 8:-8, 6:-6]
    expected = truth(points_of(grid.affine, grid.shape))[4:-4, 8:-8, 6:-6]
    held = inner > -1000
    assert np.median(np.abs(inner - expected)[held]) < 25  # the anti-aliasing of 0.7 to 2 mm
    derived = derived_headers(headers, series_description="synthetic")
    written, _ = read_series(write_series(volume, tmp_path / "out", derived))
    np.testing.assert_array_equal(written.hu, volume.hu)
    np.testing.assert_allclose(written.affine, volume.affine, atol=1e-6)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (0.0, r"a tilt of 22\.0 degrees; GantryDetectorTilt \(0018,1120\) is 0; expected both"),
        (-15.0, r"GantryDetectorTilt \(0018,1120\) is -15"),
    ],
)
def test_a_tilt_that_the_header_contradicts_is_refused(tmp_path, stated, message):
    files, _, _ = tilted(tmp_path / "series", -22.0)
    for file in files:
        edit(file, setting(GantryDetectorTilt=stated))
    with pytest.raises(GeometryError, match=message) as refused:
        read_series(files)
    assert files[0].name in str(refused.value)


@pytest.mark.parametrize("stated", [None, ""])
def test_a_tilt_that_the_header_does_not_mention_is_that_of_the_positions(tmp_path, stated):
    files, _, _ = tilted(tmp_path / "series", -22.0)
    expected = read_series(files)[0].hu
    for file in files:
        edit(file, setting(GantryDetectorTilt=stated))
    np.testing.assert_array_equal(read_series(files)[0].hu, expected)


def test_a_tilt_beyond_any_gantry_is_refused(tmp_path):
    files, _, _ = tilted(tmp_path / "series", 40.0)
    with pytest.raises(GeometryError, match=r"a tilt of 40\.0 degrees; expected at most 35"):
        read_series(files)


def test_tilted_images_along_their_normal_are_upright_already(tmp_path):
    files, _, hu = tilted(tmp_path / "series", -22.0)
    for index, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        row, column = np.reshape(dataset.ImageOrientationPatient, (2, 3)).astype(float)
        position = np.array([-17, 23, 51]) + 3 * index * np.cross(row, column)
        edit(file, setting(ImagePositionPatient=[round(float(one), 8) for one in position]))
    volume, _ = read_series(files)
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.steps == ()
