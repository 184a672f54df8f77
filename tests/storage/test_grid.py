"""Reordering and resampling, against SimpleITK, scipy and closed forms."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from storage.errors import GeometryError
from storage.grid import canonical, require_orthogonal, resample, resample_like, same_grid
from storage.volume import Volume

LPS = np.eye(3)[:, ::-1]  # columns: the directions of a canonical volume's axes z, y, x


def affine_of(directions, spacing, origin):
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions) * spacing
    affine[:3, 3] = origin
    return affine


def noise(shape, directions=LPS, spacing=(2.0, 1.5, 1.0), origin=(-20.0, 7.0, 300.0), seed=0):
    hu = np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)
    return Volume(hu, affine_of(directions, spacing, origin))


def points(volume):
    """LPS of every voxel's centre, [3, Z, Y, X]."""
    index = np.indices(volume.shape).reshape(3, -1)
    return (volume.affine[:3, :3] @ index + volume.affine[:3, 3:]).reshape(3, *volume.shape)


def indices(at, volume):
    """The volume's (fractional) index at points [3, ...], [3, N]."""
    return np.linalg.inv(volume.affine[:3, :3]) @ (at.reshape(3, -1) - volume.affine[:3, 3:])


@st.composite
def volumes(draw):
    rotation = Rotation.random(random_state=draw(st.integers(0, 2**32 - 1))).as_matrix()
    if draw(st.booleans()):  # nothing demands a right-handed array
        rotation = rotation * [1, 1, -1]
    shape = draw(st.tuples(*[st.integers(2, 6)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.2, 8)] * 3))
    origin = draw(st.tuples(*[st.floats(-2000, 2000)] * 3))
    return noise(shape, rotation, spacing, origin, seed=draw(st.integers(0, 99)))


@given(volumes())
def test_canonical_leaves_every_voxel_at_its_point_of_the_patient(volume):
    result = canonical(volume)
    index = indices(points(result), volume)
    nearest = np.rint(index).astype(int)
    np.testing.assert_allclose(index, nearest, atol=1e-6)
    assert len(np.unique(nearest, axis=1).T) == volume.hu.size
    np.testing.assert_array_equal(result.hu.ravel(), volume.hu[tuple(nearest)])


@given(volumes())
def test_no_other_order_or_direction_of_axes_lies_nearer_to_the_patients(volume):
    result = canonical(volume)
    unit = result.affine[:3, :3] / result.spacing_mm
    chosen = np.trace(LPS.T @ unit)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            assert np.trace(LPS.T @ (unit[:, order] * signs)) <= chosen + 1e-9


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_canonical_agrees_with_simpleitks_dicom_orient(order, signs):
    volume = noise((4, 5, 6), (LPS * signs)[:, order])
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing_mm[::-1])
    unit = volume.affine[:3, :3] / volume.spacing_mm
    image.SetDirection(unit[:, ::-1].ravel().tolist())
    image.SetOrigin(volume.affine[:3, 3].tolist())
    expected = sitk.DICOMOrient(image, "LPS")
    result = canonical(volume)
    np.testing.assert_array_equal(result.hu, sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(result.affine[:3, 3], expected.GetOrigin(), atol=1e-9)


def test_a_volume_with_the_wanted_spacing_is_returned_voxel_for_voxel():
    volume = noise((4, 5, 6), spacing=(3.0, 0.7004, 0.7))
    flipped = Volume(volume.hu[::-1], volume.affine @ affine_of(np.diag([-1, 1, 1]), 1, (3, 0, 0)))
    for same in (volume, flipped):
        result = resample(same, (3, 0.7, 0.7))
        np.testing.assert_array_equal(result.hu, volume.hu)
        np.testing.assert_allclose(result.affine, volume.affine, atol=1e-12)
        assert result.hu.dtype == np.int16


def test_resampling_keeps_a_linear_field_of_an_oblique_volume():
    rotation = Rotation.from_euler("xyz", [20, -15, 30], degrees=True).as_matrix() @ LPS
    grid = noise((24, 30, 26), rotation, (1.5, 1.0, 1.2))
    gradient = np.array([3.0, -5.0, 2.0])
    field = np.tensordot(gradient, points(grid), 1).astype(np.float32)
    result = resample(Volume(field, grid.affine), (2.0, 1.5, 1.5))
    expected = np.tensordot(gradient, points(result), 1)
    index = indices(points(result), grid)
    deep = ((index > 4) & (index < np.array(grid.shape)[:, None] - 5)).all(axis=0)
    assert deep.sum() > 500
    np.testing.assert_allclose(result.hu.ravel()[deep], expected.ravel()[deep], atol=0.05)


@settings(max_examples=30)
@given(volumes(), st.tuples(*[st.floats(0.5, 9)] * 3))
def test_resampling_covers_the_volume_and_invents_no_hu_beyond_its_range(volume, spacing):
    result = resample(volume, spacing)
    index = indices(points(volume), result)
    assert (index >= -0.51).all()
    assert (index <= np.array(result.shape)[:, None] - 0.49).all()
    assert result.hu.min() >= min(volume.hu.min(), -1024)
    assert result.hu.max() <= volume.hu.max()


def test_finer_sampling_agrees_with_scipy():
    volume = noise((6, 7, 8), spacing=(4.0, 2.0, 2.0))
    result = resample(volume, (1.0, 0.5, 0.5))
    index = indices(points(result), volume)
    expected = ndimage.map_coordinates(volume.hu.astype(float), index, order=1, mode="nearest")
    np.testing.assert_allclose(result.hu.ravel(), expected, atol=0.51)
    assert result.hu.dtype == np.int16


def test_coarser_sampling_averages_a_pattern_that_it_cannot_hold():
    hu = np.zeros((4, 64, 64), np.int16)
    hu[:, ::2] = 1000  # one-pixel stripes, mean 500
    stripes = Volume(hu, affine_of(LPS, (3.0, 0.5, 0.5), (0, 0, 0)))
    inner = resample(stripes, (3.0, 1.5, 0.5)).hu[:, 3:-3]
    assert np.abs(inner - 500.0).max() < 60


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1, np.nan)])
def test_an_impossible_spacing_is_refused(spacing):
    with pytest.raises(GeometryError, match="expected 3 positive"):
        resample(noise((3, 3, 3)), spacing)


@given(volumes(), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_values_return_bit_equal_to_a_grid_with_the_same_points(volume, order, flips):
    hu, affine = volume.hu.transpose(order), volume.affine[:, [*order, 3]].copy()
    for axis in np.flatnonzero(flips):
        affine[:, 3] += affine[:, axis] * (hu.shape[axis] - 1)
        affine[:, axis] *= -1
        hu = np.flip(hu, axis)
    result = resample_like(Volume(hu, affine), volume)
    assert result.hu.dtype == volume.hu.dtype
    np.testing.assert_array_equal(result.hu, volume.hu)
    np.testing.assert_array_equal(result.affine, volume.affine)


def test_another_grid_gets_linear_values_and_the_fill_outside():
    volume = noise((8, 9, 10))
    rotation = Rotation.from_euler("z", 10, degrees=True).as_matrix() @ LPS
    reference = noise((7, 12, 11), rotation, (1.7, 1.1, 1.3), (-18.3, 5.0, 301.0))
    result = resample_like(volume, reference, fill=-7.0)
    index = indices(points(reference), volume)
    inside = ((index >= 0) & (index <= np.array(volume.shape)[:, None] - 1)).all(axis=0)
    outside = ((index < -0.51) | (index > np.array(volume.shape)[:, None] - 0.49)).any(axis=0)
    assert inside.sum() > 100
    assert outside.sum() > 100
    expected = ndimage.map_coordinates(volume.hu.astype(float), index, order=1)
    values = result.hu.ravel()
    np.testing.assert_allclose(values[inside], expected[inside], atol=0.05)
    assert (values[outside] == -7).all()
    assert result.hu.dtype == np.float32


def test_a_series_comes_back_from_a_coarser_grid_without_air_at_its_ends():
    volume = Volume(np.full((21, 30, 30), 55, np.int16), affine_of(LPS, (1.0, 0.7, 0.7), (0, 0, 0)))
    there = resample(volume, (3.0, 1.6, 1.6))
    np.testing.assert_allclose(resample_like(there, volume).hu, 55, atol=1e-3)


def test_grids_are_the_same_up_to_a_micrometre():
    volume = noise((5, 5, 5))
    for shift_mm, same in ((0.0005, True), (0.005, False)):
        affine = volume.affine.copy()
        affine[0, 3] += shift_mm
        assert same_grid(volume, Volume(volume.hu, affine)) is same
    assert not same_grid(volume, noise((5, 5, 6)))


@pytest.mark.parametrize(
    ("change", "what"),
    [((0, 1, 0.3), "sheared"), ((2, 3, np.inf), "finite"), ((1, 1, 0.0), "positive")],
)
def test_an_affine_that_no_volume_may_have_is_refused_by_name(change, what):
    affine = affine_of(LPS, (2.0, 1.5, 1.0), (0, 0, 0))
    row, column, value = change
    affine[row, column] = value
    with pytest.raises(GeometryError, match=rf"^scan\.nii: .*{what}"):
        require_orthogonal(affine, "scan.nii")
