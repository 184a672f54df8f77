"""What resampling does to detail: calcium's peak and amount, frequencies, places; docs/grid.md."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from storage.grid import resample
from storage.volume import Volume

LPS = np.eye(3)[:, ::-1]
DOC = Path(__file__).parents[2] / "docs" / "grid.md"

TISSUE_HU, CALCIUM_HU = 40.0, 1000.0
EXTENT_MM, OVERSAMPLING, PLACES = 18.0, 6, 5


def on_grid(hu, spacing, directions=LPS):
    """With the middle of the volume at the origin."""
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(hu.shape) - 1) / 2)
    return Volume(hu, affine)


def sphere(spacing, diameter_mm, centre_mm):
    """Calcium as a scanner with these voxels sees it: the share of each voxel that it fills."""
    axes = []
    for step, centre in zip(spacing, centre_mm, strict=True):
        count = int(EXTENT_MM / step) | 1
        fine = (np.arange(count * OVERSAMPLING) + 0.5) / OVERSAMPLING - count / 2
        axes.append(fine * step - centre)
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = z * z + y * y + x * x <= (diameter_mm / 2) ** 2
    blocks = [part for size in inside.shape for part in (size // OVERSAMPLING, OVERSAMPLING)]
    share = inside.reshape(blocks).mean(axis=(1, 3, 5))
    return on_grid((TISSUE_HU + CALCIUM_HU * share).astype(np.float32), spacing)


def kept(source_mm, target_mm, diameter_mm):
    """Of a sphere's peak, and of its integral over the volume: means over places in the grid."""
    rng = np.random.default_rng(0)
    peaks, integrals = [], []
    for centre in rng.uniform(-0.5, 0.5, (PLACES, 3)) * (np.array(source_mm) + target_mm):
        source = sphere(source_mm, diameter_mm, centre)
        before, after = source.hu - TISSUE_HU, resample(source, target_mm).hu - TISSUE_HU
        peaks.append(after.max() / before.max())
        integrals.append(after.sum() * np.prod(target_mm) / (before.sum() * np.prod(source_mm)))
    return np.mean(peaks), np.mean(integrals)


def stated():
    """Rows of the document's table: spacings, then peak and integral for 1, 2, 3 and 4 mm."""
    number = r"([\d.]+)"
    spacing = rf"{number} x {number} x {number}"
    row = re.compile(rf"^\| {spacing} \| {spacing} \|" + rf" {number} / {number} \|" * 4, re.M)
    for match in row.finditer(DOC.read_text()):
        values = [float(group) for group in match.groups()]
        yield pytest.param(tuple(values[:3]), tuple(values[3:6]), values[6:], id=match[0][:40])


@pytest.mark.parametrize(("source_mm", "target_mm", "figures"), list(stated()))
def test_calcium_keeps_the_share_of_its_peak_and_amount_that_the_document_states(
    source_mm, target_mm, figures
):
    measured = [kept(source_mm, target_mm, diameter) for diameter in (1, 2, 3, 4)]
    np.testing.assert_allclose(np.ravel(measured), figures, atol=0.011)
    assert np.all(np.diff([peak for peak, _ in measured]) >= 0)
    for _, integral in measured[1:]:
        assert integral == pytest.approx(1, abs=0.08)


def test_the_document_has_its_table():
    assert len(list(stated())) >= 5


@pytest.mark.parametrize(("own_mm", "target_mm"), [(0.7, 1.5), (0.7, 2.0), (0.8, 3.0), (1.0, 5.0)])
@pytest.mark.parametrize("cycles_per_voxel", [0.02, 0.1, 0.23, 0.35, 0.5])
def test_each_frequency_comes_out_as_the_smoothings_formula_says(
    own_mm, target_mm, cycles_per_voxel
):
    """A plane wave, voxel by voxel: Gaussian weights of its cosine, then a straight line."""
    count = 201
    phase = 2 * np.pi * cycles_per_voxel * np.arange(count) + 0.7
    wave = np.broadcast_to(1000 * np.cos(phase), (3, 3, count)).astype(np.float32)
    volume = on_grid(np.ascontiguousarray(wave), (own_mm, own_mm, own_mm))
    result = resample(volume, (own_mm, own_mm, target_mm))

    sigma = np.sqrt((target_mm / own_mm) ** 2 - 1) / np.sqrt(8 * np.log(2))
    offsets = np.arange(-int(3 * sigma + 0.5), int(3 * sigma + 0.5) + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    left = weights @ np.cos(2 * np.pi * cycles_per_voxel * offsets) / weights.sum()

    x = (result.affine[0, 2] * np.arange(result.shape[2]) + result.affine[0, 3]) / own_mm
    index = x + (count - 1) / 2
    low = np.floor(index).astype(int)
    inner = (low > 5 * sigma) & (low < count - 2 - 5 * sigma)
    at = 1000 * left * np.cos(2 * np.pi * cycles_per_voxel * np.stack([low, low + 1]) + 0.7)
    expected = at[0] + (at[1] - at[0]) * (index - low)
    np.testing.assert_allclose(result.hu[1, 1][inner], expected[inner], atol=1.0)


@pytest.mark.parametrize(("own_mm", "target_mm"), [(0.7, 1.5), (0.7, 2.0), (0.8, 3.0), (1.0, 5.0)])
def test_of_what_a_coarser_grid_cannot_hold_little_is_left(own_mm, target_mm):
    """A zone plate: rings that become finer outwards, from nothing to the voxels' own limit."""
    count = 401
    r = (np.arange(count) - count // 2) * own_mm
    squared = r[:, None] ** 2 + r[None] ** 2
    plate = 1000 * np.cos(np.pi * squared / (2 * own_mm * r[-1]))  # 0.5 cycles a voxel at the rim
    volume = on_grid(np.repeat(plate[None], 3, axis=0).astype(np.float32), (own_mm,) * 3)
    result = resample(volume, (own_mm, target_mm, target_mm)).hu[1]
    side = (np.arange(result.shape[0]) - (result.shape[0] - 1) / 2) * target_mm
    radius = np.hypot(side[:, None], side[None])
    cycles_per_mm = radius / (2 * own_mm * r[-1])
    nyquist = 1 / (2 * target_mm)
    inside = radius < r[-1] - 3 * target_mm
    rms = {
        name: np.sqrt(np.mean(result[where & inside] ** 2)) / np.sqrt(1000**2 / 2)
        for name, where in {
            "half the limit": cycles_per_mm < nyquist / 2,
            "above twice the limit": cycles_per_mm > 2 * nyquist,
        }.items()
        if (where & inside).sum() > 20
    }
    assert rms["half the limit"] > 0.75
    assert rms.get("above twice the limit", 0.0) < 0.12


@pytest.mark.parametrize("target_mm", [(3.0, 2.0, 2.0), (1.0, 1.0, 1.0), (5.0, 1.5, 2.5)])
@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -20, 35)])
def test_a_ball_stays_where_it_is_in_the_patient(target_mm, degrees):
    directions = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ LPS
    grid = on_grid(np.zeros((40, 60, 60), np.float32), (2.0, 1.2, 1.2), directions)
    place = np.array([7.3, -11.9, 5.5])
    index = np.indices(grid.shape).reshape(3, -1)
    points = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    ball = 1000 * np.exp(-np.sum((points - place[:, None]) ** 2, axis=0) / (2 * 5.0**2))
    source = Volume((ball.reshape(grid.shape) - 1000).astype(np.float32), grid.affine)
    result = resample(source, target_mm)
    found = ndimage.center_of_mass(np.maximum(result.hu + 1000, 0))
    np.testing.assert_allclose((result.affine @ (*found, 1))[:3], place, atol=0.03)
    assert (np.diag(result.affine[:3, 2::-1]) > 0).all()
