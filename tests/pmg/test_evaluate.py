"""Measuring cases from files: truth on the source's grid, regions, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pmg.agatston import agatston, artery_region
from pmg.cases import Case, CaseError, Region, find_cases, read_target
from pmg.evaluate import CaseResult, measure
from storage.grid import canonical
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
        truth = self.folder / "truth"
        return Case("one", self.folder / "source", truth, regions, truth / "organs.nii.gz")

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


def figures(result: CaseResult, name: str = "translated") -> dict[str, float | None]:
    return {quantity.name: amount.value for quantity, amount in result.measured[name].items()}


def evaluated(phantom: Phantom, translated: Volume, *regions: Region, **more) -> CaseResult:
    candidates = {"identity": phantom.source, "translated": translated}
    return measure(phantom.case(*regions), phantom.source, candidates, **more)


def test_a_translation_and_its_source_are_measured_against_the_truth(phantom):
    hu = phantom.target.hu.copy()
    hu[phantom.target.hu > -500] += 7
    hu[(3, 20, 30)] -= 200
    hu[:, :2] += 500  # air: outside of the body
    result = evaluated(phantom, Volume(hu, phantom.source.affine))
    assert (result.name, result.subject) == ("one", "one")
    translated, identity, truth = (
        figures(result, name) for name in ("translated", "identity", "truth")
    )
    body = int((phantom.source.hu > -300).sum())
    assert translated["body MAE"] == pytest.approx((7 * (body - 1) + 193) / body, rel=1e-3)
    error = (49 * (body - 1) + 193**2) / body
    assert translated["PSNR"] == pytest.approx(10 * np.log10(4095**2 / error), rel=1e-3)
    assert translated["liver"] == pytest.approx(117)
    assert translated["liver, error"] == pytest.approx(7)
    assert truth["liver"] == pytest.approx(110)
    assert (identity["liver"], identity["liver, error"]) == pytest.approx((40, 70))
    liver = int((phantom.organs.hu == 5).sum())
    assert identity["body MAE"] == pytest.approx(70 * liver / body, rel=1e-3)
    assert translated["plaques kept"] == 50
    assert translated["plaque contrast / true contrast"] == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert truth["plaque contrast / true contrast"] == 100
    assert identity["MS-SSIM"] < translated["MS-SSIM"] < 1
    assert translated["gradient magnitude error"] > 0
    assert identity["gradient correlation with the source"] == pytest.approx(1)
    assert translated["invented plaques"] == identity["invented plaques"] == 0


def test_plaques_are_told_by_size(phantom):
    hu = phantom.target.hu.copy()
    hu[(3, 20, 30)] -= 200
    translated = figures(evaluated(phantom, Volume(hu, phantom.source.affine)))
    assert translated["plaques kept, 1-2 mm"] is None
    assert translated["plaques kept, 2-4 mm"] == 0
    assert translated["plaques kept, > 4 mm"] == 100
    assert translated["plaque contrast / true contrast, 2-4 mm"] == pytest.approx(100 / 3)


def test_a_plaque_that_truth_and_source_do_not_have_is_invented(phantom):
    hu = phantom.target.hu.copy()
    hu[4, 30, 40] += 150  # 20 mm^3
    hu[5, 26, 23] += 150  # beside a true one: its blooming
    translated = figures(evaluated(phantom, Volume(hu, phantom.source.affine)))
    assert translated["invented plaques"] == 1


def test_what_is_changed_of_fat_and_bone_is_told(phantom):
    source = phantom.source.hu.copy()
    source[:, 30:36, 20:40] = -100
    source[:, 36:40, 25:35] = 900
    changed = np.where(source < -50, source + 12, source - 30)
    source, translated = (Volume(hu, phantom.source.affine) for hu in (source, changed))
    case = Case("one", phantom.folder, None)
    result = measure(case, source, {"identity": source, "translated": translated})
    assert figures(result)["fat, change"] == pytest.approx(12)
    assert figures(result)["cortical bone, change"] == pytest.approx(30)
    identity = figures(result, "identity")
    assert identity["fat, change"] == identity["cortical bone, change"] == 0


def test_every_candidate_is_measured_alike(phantom):
    candidates = dict.fromkeys(("identity", "matched", "translated"), phantom.source)
    result = measure(phantom.case(), phantom.source, candidates, subject="somebody")
    assert figures(result, "identity") == figures(result, "matched") == figures(result)
    assert result.subject == "somebody"


def test_without_contrast_the_score_of_the_arteries_is_measured(phantom):
    organs = phantom.organs.hu.copy()
    organs[:, 15:30, 18:34] = 52
    write_nifti(Volume(organs, phantom.organs.affine), phantom.folder / "truth" / "organs.nii.gz")
    hu = phantom.target.hu.copy()
    hu[(3, 20, 30)] -= 250
    result = evaluated(phantom, Volume(hu, phantom.source.affine), direction=2)
    # Two pixels of 5 mm^2 at 340 HU, factor 3, in slices of 4 mm; the candidate lost one.
    assert figures(result, "truth")["Agatston score"] == pytest.approx(2 * 5 * 3 * 4 / 3)
    assert figures(result)["Agatston score"] == pytest.approx(5 * 3 * 4 / 3)
    assert figures(result)["Agatston score, error"] == pytest.approx(5 * 3 * 4 / 3)
    other = canonical(Volume(organs, phantom.organs.affine))
    everywhere = agatston(
        canonical(phantom.source).hu, artery_region(other.hu, other.spacing_mm), other.spacing_mm
    )
    assert figures(result, "identity")["Agatston score"] == pytest.approx(everywhere)
    assert "Agatston score" not in figures(evaluated(phantom, phantom.source, direction=1))


def test_what_contrast_decides_follows_the_domain_that_has_it(phantom):
    organs = phantom.organs.hu.copy()
    organs[:, 15:30, 18:34] = 52
    write_nifti(Volume(organs, phantom.organs.affine), phantom.folder / "truth" / "organs.nii.gz")
    with_contrast = evaluated(phantom, phantom.target, direction=2)
    assert "Agatston score" in figures(with_contrast)
    assert evaluated(phantom, phantom.target, direction=1, contrast_domain=1) == with_contrast
    without = evaluated(phantom, phantom.target, direction=1)
    assert evaluated(phantom, phantom.target, direction=2, contrast_domain=1) == without


def test_a_source_in_any_order_of_axes_has_the_same_figures(phantom):
    straight = figures(evaluated(phantom, phantom.target))

    def turned(volume: Volume) -> Volume:
        affine = volume.affine.copy()
        affine[:, 3] += affine[:, 1] * (SHAPE[1] - 1)
        affine[:, 1] *= -1
        return Volume(volume.hu[:, ::-1].transpose(2, 0, 1), affine[:, [2, 0, 1, 3]])

    source, target = turned(phantom.source), turned(phantom.target)
    result = measure(phantom.case(), source, {"identity": source, "translated": target})
    assert figures(result) == straight
    for name in ("target", "organs", "plaques"):
        volume = turned(getattr(phantom, name))
        write_nifti(volume, phantom.folder / "truth" / f"{name}.nii.gz")
    assert figures(evaluated(phantom, phantom.target)) == straight
    found = read_target(phantom.case(), phantom.source)
    np.testing.assert_array_equal(found.hu, phantom.target.hu)


def test_plaques_are_optional(phantom):
    (phantom.folder / "truth" / "plaques.nii.gz").unlink()
    identity = figures(evaluated(phantom, phantom.source), "identity")
    assert identity["plaques kept"] is None
    assert identity["liver"] == pytest.approx(40)


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
        evaluated(phantom, phantom.source)
    assert str(caught.value).startswith(f"truth {path}: its grid is not the source's")


@pytest.mark.parametrize("name", ["target.nii.gz", "organs.nii.gz", "plaques.csv"])
def test_a_missing_file_of_the_truth_is_refused_by_name(phantom, name):
    path = phantom.folder / "truth" / name
    path.unlink()
    with pytest.raises(CaseError, match=f"{path}: no such file"):
        evaluated(phantom, phantom.source)


def test_a_plaque_without_numbers_is_refused_by_line(phantom):
    path = phantom.folder / "truth" / "plaques.csv"
    path.write_text("id,diameter_mm,x_mm,y_mm,z_mm\n1,3,0,0,0\n2,three,0,0,0\n")
    with pytest.raises(CaseError, match=rf"{path}, line 3: .*three.*expected numbers under x_mm"):
        evaluated(phantom, phantom.source)


def test_a_source_of_air_is_refused_by_case():
    air = Volume(np.full(SHAPE, -1000, np.int16), affine_of())
    with pytest.raises(CaseError, match="case one: no voxel of the source is body"):
        measure(Case("one", Path("source"), None), air, {"identity": air})


def test_without_truth_organs_calcium_and_structure_are_measured(phantom):
    path = phantom.folder / "organs.nii.gz"
    write_nifti(phantom.organs, path)
    case = Case("one", phantom.folder, None, organs=path)
    hu = phantom.target.hu.copy()
    hu[(3, 20, 30)] = 40  # lost
    hu[4, 30, 40] = 350  # invented
    translated = Volume(hu, phantom.source.affine)
    result = measure(case, phantom.source, {"identity": phantom.source, "translated": translated})
    found = figures(result)
    assert found["liver"] == pytest.approx(110)
    assert found["calcium specks kept"] == 50
    assert found["calcium specks invented"] == 1
    assert found["gradient correlation with the source"] < 1
    identity = figures(result, "identity")
    assert (identity["calcium specks kept"], identity["calcium specks invented"]) == (100, 0)
    assert "truth" not in result.measured
    assert not [name for name in found if "error" in name or "plaque" in name]


def sphere_by_loops(region: Region, volume: Volume) -> list[tuple[int, int, int]]:
    centre = np.array(region.centre_mm)
    return [
        voxel
        for voxel in np.ndindex(volume.shape)
        if np.linalg.norm(position_mm(voxel, volume.affine) - centre) <= region.radius_mm
    ]


@pytest.mark.parametrize(("direction", "from_hu"), [(1, 130), (2, 300)])
def test_calcium_of_a_region_is_where_the_source_has_it_before_and_after(
    phantom, direction, from_hu
):
    region = Region("arch", position_mm((4, 23, 26), phantom.source.affine), 21.3)
    noise = np.random.default_rng(0).normal(0, 20, SHAPE)
    source = Volume((phantom.source.hu + noise).astype(np.int16), phantom.source.affine)
    hu = source.hu + 100  # contrast raises all blood; much of it above 130 HU
    hu[(3, 20, 30)] -= 250
    result = measure(
        Case("one", phantom.folder, None, (region,)),
        source,
        {"identity": source, "translated": Volume(hu, source.affine)},
        direction,
    )
    inside = sphere_by_loops(region, source)
    calcium = [v for v in inside if source.hu[v] >= from_hu]
    other = [v for v in inside if source.hu[v] < from_hu]
    assert set(PLAQUES) <= set(calcium)
    (note,) = (q.note for q in result.measured["identity"] if q.name == "one: arch, calcium")
    assert note.startswith(f"{len(calcium) * 4 * 2.5 * 2:.0f} mm3 of {from_hu} HU or more")
    for name, array in (("identity", source.hu), ("translated", hu)):
        found = figures(result, name)
        assert found["one: arch, calcium"] == pytest.approx(np.mean([array[v] for v in calcium]))
        assert found["one: arch, mean"] == pytest.approx(np.mean([array[v] for v in other]))
        assert ("one: arch, Agatston score" in found) == (direction == 2)


def test_a_region_without_calcium_or_with_nothing_else_says_so(phantom):
    blood = Region("blood", position_mm((4, 30, 40), phantom.source.affine), 4.0)
    stone = Region("stone", position_mm((3, 20, 30), phantom.source.affine), 1.0)
    case = Case("one", phantom.folder, None, (blood, stone))
    found = figures(measure(case, phantom.source, {"translated": phantom.target}))
    assert {name: value for name, value in found.items() if name.startswith("one: ")} == {
        "one: blood, mean": 40,
        "one: stone, calcium": 340,
    }


def test_a_region_outside_of_the_volume_is_refused_by_name(phantom):
    far = Region("brain", (0.0, 0.0, 3000.0), 10.0)
    with pytest.raises(CaseError, match=r"region brain: .* holds no voxel of the source"):
        evaluated(phantom, phantom.source, far)


def test_cases_are_the_folders_with_a_source(tmp_path):
    for place in ("b/source", "b/truth", "a/source", "c/source", "notes"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "a" / "regions.csv").write_text(
        "name,x_mm,y_mm,z_mm,radius_mm\narch,-12.5,30,-200,15\nblood,0,0,1e2,4\n"
    )
    (tmp_path / "c" / "organs.nii.gz").touch()
    a, b, c = find_cases(tmp_path)
    assert (a.name, a.source, a.truth, a.organs) == ("a", tmp_path / "a" / "source", None, None)
    assert a.regions == (
        Region("arch", (-12.5, 30.0, -200.0), 15.0),
        Region("blood", (0.0, 0.0, 100.0), 4.0),
    )
    assert (b.truth, b.organs) == (tmp_path / "b/truth", tmp_path / "b/truth/organs.nii.gz")
    assert (c.truth, c.organs) == (None, tmp_path / "c" / "organs.nii.gz")


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
