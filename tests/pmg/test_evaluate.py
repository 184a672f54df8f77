"""Measuring cases from files: truth on the source's grid, regions, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pmg.evaluate import (
    Case,
    CaseError,
    Region,
    find_cases,
    measure,
    read_target,
)
from storage.nifti import write_nifti
from storage.volume import Volume

SPACING_MM = (4.0, 2.5, 2.0)
ORIGIN_MM = (-90.0, -60.0, 300.0)
SHAPE = (8, 48, 64)
PLAQUES = {(3, 20, 30): 3.0, (5, 26, 22): 5.0}  # voxel: diameter in mm


def affine_of(rotation: np.ndarray | None = None) -> np.ndarray:
    """Axes z, y, x along superior, posterior, left, turned by a rotation."""
    affine = np.eye(4)
    turned = np.eye(3)[:, ::-1] if rotation is None else rotation @ np.eye(3)[:, ::-1]
    affine[:3, :3] = turned * SPACING_MM
    affine[:3, 3] = ORIGIN_MM
    return affine


def position_mm(voxel: tuple[int, int, int], affine: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (affine @ (*voxel, 1.0))[:3]
    return float(x), float(y), float(z)


@dataclass
class Phantom:
    """A trunk of 40 HU in air with a liver and two plaques, and its contrast-enhanced truth."""

    folder: Path
    source: Volume
    target: Volume
    organs: Volume
    plaques: Volume

    def case(self, *regions: Region) -> Case:
        return Case("one", self.folder / "source", self.folder / "truth", regions)

    def write(self) -> None:
        truth = self.folder / "truth"
        truth.mkdir(exist_ok=True)
        for name in ("target", "organs", "plaques"):
            write_nifti(getattr(self, name), truth / f"{name}.nii.gz")
        lines = ["id,diameter_mm,x_mm,y_mm,z_mm"]
        for number, (voxel, diameter) in enumerate(PLAQUES.items()):
            place = ",".join(f"{c:.3f}" for c in position_mm(voxel, self.source.affine))
            lines.append(f"{number},{diameter},{place}")
        (truth / "plaques.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(params=["axial", "oblique"])
def phantom(request, tmp_path) -> Phantom:
    turn = Rotation.from_euler("zx", [12, -8], degrees=True).as_matrix()
    affine = affine_of(turn if request.param == "oblique" else None)
    _, y, x = np.indices(SHAPE)
    body = ((y - 23.5) / 20) ** 2 + ((x - 31.5) / 28) ** 2 < 1
    organs = np.zeros(SHAPE, np.uint8)
    organs[:, 15:25, 40:50] = 5
    share = np.zeros(SHAPE, np.float32)
    for voxel in PLAQUES:
        share[voxel] = 1
    source = np.where(body, 40.0, -1000.0)
    target = np.where(organs == 5, 110.0, source)
    source, target = source + 300 * share, target + 300 * share
    made = Phantom(
        tmp_path,
        Volume(source.astype(np.int16), affine),
        Volume(target.astype(np.int16), affine),
        Volume(organs, affine),
        Volume(share, affine),
    )
    made.write()
    return made


def test_a_translation_and_its_source_are_measured_against_the_truth(phantom):
    hu = phantom.target.hu.copy()
    hu[phantom.target.hu > -500] += 7
    hu[(3, 20, 30)] -= 200
    hu[:, :2] += 500  # air: outside of the body
    result = measure(phantom.case(), phantom.source, Volume(hu, phantom.source.affine))
    body = (phantom.source.hu > -300).sum()
    assert result.translated.body_mae_hu == pytest.approx((7 * (body - 1) + 193) / body, rel=1e-3)
    assert result.translated.organ_hu == {"liver": pytest.approx(117)}
    assert result.truth_organ_hu == {"liver": pytest.approx(110)}
    assert result.identity.organ_hu == {"liver": pytest.approx(40)}
    liver = (phantom.organs.hu == 5).sum()
    assert result.identity.body_mae_hu == pytest.approx(70 * liver / body, rel=1e-3)
    assert {p.diameter_mm: (p.true_hu, p.candidate_hu) for p in result.translated.plaques} == {
        3.0: (pytest.approx(300), pytest.approx(100)),
        5.0: (pytest.approx(300), pytest.approx(300)),
    }


def test_truth_in_another_order_of_axes_is_the_same_truth(phantom):
    straight = measure(phantom.case(), phantom.source, phantom.source)
    for name in ("target", "organs", "plaques"):
        volume = getattr(phantom, name)
        affine = volume.affine.copy()
        affine[:, 3] += affine[:, 1] * (SHAPE[1] - 1)
        affine[:, 1] *= -1
        flipped = Volume(volume.hu[:, ::-1].transpose(2, 0, 1), affine[:, [2, 0, 1, 3]])
        write_nifti(flipped, phantom.folder / "truth" / f"{name}.nii.gz")
    assert measure(phantom.case(), phantom.source, phantom.source) == straight
    target = read_target(phantom.case(), phantom.source)
    np.testing.assert_array_equal(target.hu, phantom.target.hu)


def test_plaques_are_optional(phantom):
    (phantom.folder / "truth" / "plaques.nii.gz").unlink()
    result = measure(phantom.case(), phantom.source, phantom.source)
    assert result.identity.plaques == ()
    assert result.identity.organ_hu.keys() == {"liver"}


@pytest.mark.parametrize("name", ["target", "organs", "plaques"])
@pytest.mark.parametrize("wrong", ["shifted", "shorter"])
def test_truth_on_another_grid_is_refused_by_file(phantom, name, wrong):
    volume = getattr(phantom, name)
    if wrong == "shifted":
        other = Volume(volume.hu, volume.affine + np.array([0, 0, 0, 1.0]) * [[1], [0], [0], [0]])
    else:
        other = Volume(volume.hu[1:], volume.affine)
    path = phantom.folder / "truth" / f"{name}.nii.gz"
    write_nifti(other, path)
    with pytest.raises(CaseError) as caught:
        measure(phantom.case(), phantom.source, phantom.source)
    assert str(caught.value).startswith(f"truth {path}: its grid is not the source's")


@pytest.mark.parametrize("name", ["target.nii.gz", "organs.nii.gz", "plaques.csv"])
def test_a_missing_file_of_the_truth_is_refused_by_name(phantom, name):
    path = phantom.folder / "truth" / name
    path.unlink()
    with pytest.raises(CaseError, match=f"{path}: no such file"):
        measure(phantom.case(), phantom.source, phantom.source)


def test_a_plaque_without_numbers_is_refused_by_line(phantom):
    path = phantom.folder / "truth" / "plaques.csv"
    path.write_text("id,diameter_mm,x_mm,y_mm,z_mm\n1,3,0,0,0\n2,three,0,0,0\n")
    with pytest.raises(CaseError, match=rf"{path}, line 3: .*three.*expected numbers under x_mm"):
        measure(phantom.case(), phantom.source, phantom.source)


def sphere_by_loops(region: Region, volume: Volume) -> list[tuple[int, int, int]]:
    centre = np.array(region.centre_mm)
    return [
        voxel
        for voxel in np.ndindex(volume.shape)
        if np.linalg.norm(position_mm(voxel, volume.affine) - centre) <= region.radius_mm
    ]


def test_calcium_of_a_region_is_where_the_source_has_it_before_and_after(phantom):
    region = Region("arch", position_mm((4, 23, 26), phantom.source.affine), 21.3)
    noise = np.random.default_rng(0).normal(0, 20, SHAPE)
    source = Volume((phantom.source.hu + noise).astype(np.int16), phantom.source.affine)
    hu = source.hu + 100  # contrast raises all blood; much of it above 130 HU
    hu[(3, 20, 30)] -= 250
    result = measure(
        Case("one", phantom.folder, None, (region,)), source, Volume(hu, source.affine)
    )
    assert result.translated is result.identity is None

    inside = sphere_by_loops(region, source)
    calcium = [v for v in inside if source.hu[v] >= 130]
    other = [v for v in inside if source.hu[v] < 130]
    assert set(PLAQUES) <= set(calcium)
    (measured,) = result.regions
    assert measured.calcium_mm3 == pytest.approx(len(calcium) * 4 * 2.5 * 2)
    for figures, voxels in ((measured.calcium_hu, calcium), (measured.other_hu, other)):
        before, after = ([float(array[v]) for v in voxels] for array in (source.hu, hu))
        assert figures == pytest.approx((np.mean(before), np.mean(after)))


def test_a_region_without_calcium_or_with_nothing_else_says_so(phantom):
    blood = Region("blood", position_mm((4, 30, 40), phantom.source.affine), 4.0)
    stone = Region("stone", position_mm((3, 20, 30), phantom.source.affine), 1.0)
    results = measure(
        Case("one", phantom.folder, None, (blood, stone)), phantom.source, phantom.target
    ).regions
    assert (results[0].calcium_mm3, results[0].calcium_hu) == (0, None)
    assert results[0].other_hu == (40, 40)
    assert (results[1].calcium_hu, results[1].other_hu) == ((340, 340), None)


def test_a_region_outside_of_the_volume_is_refused_by_name(phantom):
    far = Region("brain", (0.0, 0.0, 3000.0), 10.0)
    with pytest.raises(CaseError, match=r"region brain: .* holds no voxel of the source"):
        measure(Case("one", phantom.folder, None, (far,)), phantom.source, phantom.source)


def test_cases_are_the_folders_with_a_source(tmp_path):
    for place in ("b/source", "b/truth", "a/source", "notes"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "a" / "regions.csv").write_text(
        "name,x_mm,y_mm,z_mm,radius_mm\narch,-12.5,30,-200,15\nblood,0,0,1e2,4\n"
    )
    a, b = find_cases(tmp_path)
    assert (a.name, a.source, a.truth) == ("a", tmp_path / "a" / "source", None)
    assert a.regions == (
        Region("arch", (-12.5, 30.0, -200.0), 15.0),
        Region("blood", (0.0, 0.0, 100.0), 4.0),
    )
    assert (b.name, b.truth, b.regions) == ("b", tmp_path / "b" / "truth", ())


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_folder_without_cases_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        CaseError, match=f"cases {tmp_path / folder}: no sub-folder holds a source/"
    ):
        find_cases(tmp_path / folder)


@pytest.mark.parametrize(
    "text", ["name,x_mm,y_mm,z_mm,radius_mm\narch,1,2,three,4\n", "name,x,y,z,r\narch,1,2,3,4\n"]
)
def test_regions_without_numbers_are_refused_by_line(tmp_path, text):
    (tmp_path / "a" / "source").mkdir(parents=True)
    path = tmp_path / "a" / "regions.csv"
    path.write_text(text)
    with pytest.raises(CaseError, match=rf"{path}, line 2: .*expected numbers under x_mm, y_mm"):
        find_cases(tmp_path)
