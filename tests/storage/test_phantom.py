"""The phantom: HU by the table, exact plaques, honest noise, disjoint and repeatable cohorts."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pmg.agatston import artery_region
from storage.nifti import read_nifti
from storage.phantom import (
    PHASES,
    TISSUES,
    Label,
    Protocol,
    draw_subject,
    labels,
    render,
    vary,
    write_cohort,
)
from storage.phantom_render import plaque_fraction, render_phases
from storage.phantom_scanner import grid_affine

COARSE = Protocol(shape=(48, 112, 120), spacing_mm=(4.0, 3.5, 3.5), thickness_mm=4.0, blur_px=0.0)
TINY = Protocol(shape=(12, 64, 64), spacing_mm=(6.0, 6.0, 6.0), thickness_mm=6.0)

# Mean HU before iodine, and what iodine adds in the late arterial and portal phase, by organ; from
# published ranges, with the tolerance of the first (a kidney mixes cortex and medulla).
REFERENCE = {
    Label.AORTA: (40, 285, 110, 10),
    Label.LIVER: (55, 25, 55, 10),
    Label.SPLEEN: (45, 75, 75, 10),
    Label.PANCREAS: (40, 78, 55, 12),
    Label.KIDNEY_LEFT: (30, 140, 146, 10),
    Label.KIDNEY_RIGHT: (30, 140, 146, 10),
    Label.PORTAL_VEIN: (40, 105, 125, 10),
    Label.MUSCLE: (44, 9, 8, 12),  # 50 less what its planes of fat take
    Label.FAT: (-102, 0, 0, 8),
}


@pytest.fixture(scope="module")
def subject():
    return draw_subject(11)


@pytest.fixture(scope="module")
def phases(subject):
    return dict(zip(PHASES, render_phases(subject, PHASES, COARSE, [None] * 3), strict=True))


@pytest.fixture(scope="module")
def truth(subject):
    return labels(subject, COARSE)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    return write_cohort(folder, 5, 2, 1, TINY)


def inside(organs: np.ndarray, label: Label) -> np.ndarray:
    return ndimage.binary_erosion(organs == label)


def read_series(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize("column", [0, 1, 2], ids=PHASES)
def test_organs_have_the_tables_hu_in_every_phase(column, subject, phases, truth):
    hu = phases[PHASES[column]].hu
    for label, (base, *added, tolerance) in REFERENCE.items():
        iodine = subject.dose_factor * (added[column - 1] if column else 0)
        mean = hu[inside(truth.organs, label)].mean()
        allowed = tolerance + 0.25 * iodine
        assert abs(mean - base - iodine) < allowed, f"{label.name}: {mean:.0f} HU"


def test_subjects_differ_in_hu_and_dose_as_people_do():
    drawn = [draw_subject(seed) for seed in range(40)]
    doses = [subject.dose_factor for subject in drawn]
    aorta = [subject.hu["aorta"].at("portal", subject.dose_factor) for subject in drawn]
    assert min(doses) < 0.85
    assert max(doses) > 1.15
    assert 0.75 <= min(doses) <= max(doses) <= 1.25
    assert 0.08 < np.std(aorta) / np.mean(aorta) < 0.2


def test_the_dose_changes_what_takes_iodine_and_nothing_else(subject, truth):
    low, high = (
        render(replace(subject, dose_factor=dose), "portal", COARSE).hu for dose in (0.75, 1.25)
    )
    change = high.astype(int) - low
    for label in (Label.FAT, Label.GAS, Label.AIR, Label.GALLBLADDER):
        core = change[ndimage.binary_erosion(truth.organs == label, iterations=2)]
        # Vessels thinner than half a voxel run through fat, and folds of bowel wall through gas.
        assert np.mean(core == 0) > 0.98, label.name
        assert np.abs(core).mean() < 0.2, label.name
    assert change[inside(truth.organs, Label.LIVER)].mean() == pytest.approx(27, rel=0.25)


@pytest.mark.parametrize("tissue", [name for name, t in TISSUES.items() if not t.takes_iodine])
def test_a_tissue_without_iodine_is_the_same_in_every_phase(tissue, subject):
    assert len({subject.hu[tissue].at(phase, 1.25) for phase in PHASES}) == 1


def test_cortical_bone_does_not_take_contrast(subject):
    fine = Protocol(shape=(2, 160, 160), spacing_mm=(1.0, 0.5, 0.5), thickness_mm=1.0, blur_px=0.0)
    fine = replace(fine, centre_mm=(0.0, 10.0, 3.0))
    before, after = render_phases(subject, ["non_contrast", "portal"], fine, [None, None])
    dense = before.hu > subject.hu["cortical_bone"].base
    assert dense.sum() > 100
    assert np.abs(after.hu[dense].astype(int) - before.hu[dense]).max() <= 3  # marrow: 27


def test_every_organ_is_one_piece_on_its_side_of_the_body(truth):
    z, y, x = np.indices(truth.organs.shape)
    place = {}
    for label in REFERENCE:
        if label in {Label.FAT, Label.MUSCLE}:
            continue
        mask = truth.organs == label
        pieces, _ = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert sizes.max() > 0.85 * sizes.sum(), label.name
        index = np.array([z[mask].mean(), y[mask].mean(), x[mask].mean(), 1.0])
        place[label] = (truth.affine @ index)[:3]
    assert place[Label.LIVER][0] < -20 < 60 < place[Label.SPLEEN][0]
    assert place[Label.KIDNEY_RIGHT][0] < -35 < 35 < place[Label.KIDNEY_LEFT][0]
    assert place[Label.PANCREAS][1] < place[Label.AORTA][1] < place[Label.KIDNEY_LEFT][1]
    assert place[Label.LIVER][2] > place[Label.KIDNEY_RIGHT][2]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_organ_volumes_are_those_of_adults(seed):
    organs = labels(draw_subject(seed), COARSE).organs
    millilitres = {label: (organs == label).sum() * 49 / 1000 for label in REFERENCE}
    for label, low, high in (
        (Label.LIVER, 1000, 2800),
        (Label.SPLEEN, 50, 350),
        (Label.KIDNEY_LEFT, 80, 250),
        (Label.KIDNEY_RIGHT, 80, 250),
        (Label.PANCREAS, 30, 120),
    ):
        assert low < millilitres[label] < high, f"{label.name} has {millilitres[label]:.0f} mL"


@pytest.mark.parametrize(("spacing", "thickness"), [(3.0, 3.0), (2.5, 5.0), (1.0, 1.0)])
def test_plaque_fractions_add_up_to_the_plaques_volume(spacing, thickness, subject):
    slices = round(190 / spacing)
    protocol = Protocol(
        shape=(slices, 90, 90), spacing_mm=(spacing, 1.5, 1.5), thickness_mm=thickness
    )
    # Bent round the lumen, an ellipsoid keeps its volume: what it gains outside it loses inside.
    shown = [plaque for plaque, _ in labels(subject, COARSE).plaques]
    assert 4 <= len(shown) <= 12
    volume = sum(np.pi / 6 * p.length_mm * p.arc_mm * p.thickness_mm for p in shown)
    fraction = plaque_fraction(subject, protocol)
    assert 0 <= fraction.min() <= fraction.max() <= 1
    assert fraction.sum(dtype=float) * spacing * 1.5**2 == pytest.approx(volume, rel=0.02)


def test_a_plaque_shows_by_its_share_of_each_voxel(subject, phases, truth):
    bare = render(replace(subject, plaques=()), "arterial", COARSE).hu.astype(float)
    expected = bare.copy()
    for plaque in subject.plaques:
        share = plaque_fraction(replace(subject, plaques=(plaque,)), COARSE)
        expected += share * (plaque.peak_hu - expected)
    seen = phases["arterial"].hu
    np.testing.assert_allclose(seen, expected, atol=1.5)
    assert np.array_equal(seen[truth.plaque == 0], bare[truth.plaque == 0])


def test_plaques_are_of_the_sizes_promised_and_lie_on_the_wall_of_the_aorta():
    fine = Protocol(shape=(160, 120, 120), spacing_mm=(1.0, 1.0, 1.0), thickness_mm=1.0)
    fine = replace(fine, centre_mm=(0.0, -20.0, 15.0), table_gap_mm=None)
    subject = draw_subject(4)
    exact = labels(subject, fine)
    aorta = exact.organs == Label.AORTA
    to_wall = np.where(
        aorta, ndimage.distance_transform_edt(aorta), ndimage.distance_transform_edt(~aorta)
    )
    assert 4 <= len(exact.plaques) <= 12
    for plaque, centre in exact.plaques:
        assert 1 <= plaque.diameter_mm <= 6
        assert 0.5 <= plaque.thickness_mm <= 2
        assert 200 <= plaque.peak_hu <= 1200
        z, y, x = np.rint(np.linalg.inv(exact.affine) @ [*centre, 1])[:3].astype(int)
        assert to_wall[z, y, x] < 4
    sizes = [p.diameter_mm for seed in range(30) for p in draw_subject(seed).plaques]
    assert np.mean(np.array(sizes) >= 2) > 0.7


@pytest.mark.parametrize("seed", [11, 12])
def test_plaques_of_the_pelvis_lie_on_labelled_iliac_arteries(seed):
    low = Protocol((70, 90, 90), (1.0, 1.5, 1.5), 1.0, (0.0, -10.0, -115.0), table_gap_mm=None)
    subject = draw_subject(seed)
    exact = labels(subject, low)
    iliacs = (Label.ILIAC_ARTERY_LEFT, Label.ILIAC_ARTERY_RIGHT)
    columns = [np.nonzero(exact.organs == label)[2].mean() for label in iliacs]
    assert columns[0] > columns[1] + 10  # x goes to the patient's left

    assert 1 <= len(exact.plaques) <= 6
    assert len(exact.plaques) < len(subject.plaques)
    to_artery = ndimage.distance_transform_edt(
        ~np.isin(exact.organs, iliacs), sampling=(1, 1.5, 1.5)
    )
    for _, centre in exact.plaques:
        z, y, x = np.rint(np.linalg.inv(exact.affine) @ [*centre, 1])[:3].astype(int)
        assert to_artery[z, y, x] < 2
    arteries = artery_region(exact.organs, (1.0, 1.5, 1.5))
    assert exact.plaque[arteries].sum() > 0.8 * exact.plaque.sum()


def test_a_thick_slice_is_the_mean_of_the_thin_ones_it_covers(subject):
    thick = Protocol(shape=(4, 96, 96), spacing_mm=(6, 4, 4), thickness_mm=6, blur_px=0)
    thin = replace(thick, shape=(24, 96, 96), spacing_mm=(1, 4, 4), thickness_mm=1)
    mean = render(subject, "portal", thin).hu.reshape(4, 6, 96, 96).mean(axis=1)
    error = np.abs(render(subject, "portal", thick).hu - mean)
    assert error.mean() < 3
    assert error.mean() < 0.2 * np.abs(render(subject, "portal", thin).hu[::6] - mean).mean()


def test_noise_is_correlated_stronger_inside_and_new_in_every_series(subject):
    protocol = Protocol(shape=(24, 128, 128), spacing_mm=(3, 3, 3), noise_sd_hu=(18, 18))
    clean = render(subject, "non_contrast", protocol).hu.astype(float)
    noise, other = (render(subject, "non_contrast", protocol, seed).hu - clean for seed in (1, 2))
    organs = labels(subject, protocol).organs
    liver = ndimage.binary_erosion(organs == Label.LIVER, iterations=2)
    skin_fat = inside(organs, Label.FAT)
    assert noise[liver].std() == pytest.approx(20, abs=4)
    assert noise[skin_fat].std() < noise[liver].std()
    beside = np.corrcoef(noise[:, :, :-1][liver[:, :, :-1]], noise[:, :, 1:][liver[:, :, :-1]])
    far = np.corrcoef(noise[:, :, :-9][liver[:, :, :-9]], noise[:, :, 9:][liver[:, :, :-9]])
    assert beside[0, 1] > 0.5
    assert abs(far[0, 1]) < 0.15
    assert abs(np.corrcoef(noise[liver], other[liver])[0, 1]) < 0.05


def test_the_same_seed_gives_the_same_voxels_and_another_seed_does_not():
    first, again = (render(draw_subject(3), "portal", TINY, 9).hu for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, render(draw_subject(4), "portal", TINY, 9).hu)
    assert not np.array_equal(first, render(draw_subject(3), "portal", TINY, 8).hu)


def test_rendering_in_slabs_leaves_no_seam(subject, monkeypatch):
    whole = render(subject, "portal", TINY)
    monkeypatch.setattr("storage.phantom_render._SLAB_POINTS", 1)
    assert np.array_equal(render(subject, "portal", TINY).hu, whole.hu)


@settings(max_examples=30)
@given(
    st.integers(0, 10**6),
    st.tuples(*[st.floats(low, high) for low, high in ((-150, 150), (-120, 80), (-80, 120))]),
)
def test_frames_of_reference_invert_one_another(seed, point):
    subject = draw_subject(seed)
    place = subject.from_atlas(np.array(point))
    scanner = subject.to_scanner(place).astype(np.float32)
    back = subject.to_atlas(*subject.from_scanner(*scanner[:, None]))
    np.testing.assert_allclose(np.ravel(back), point, atol=0.05)


def test_a_cohort_reads_back_in_simpleitk_as_it_was_rendered(cohort):
    subject_seed = 5 * 1_000_000
    subject = draw_subject(subject_seed)
    protocol = vary(TINY, subject, "domain1", subject_seed)
    expected = render(subject, "non_contrast", protocol, subject_seed)
    image = read_series(cohort.parent / "domain1" / "domain1-000")
    assert np.array_equal(sitk.GetArrayFromImage(image), expected.hu)
    affine = grid_affine(protocol)
    corner = image.TransformContinuousIndexToPhysicalPoint((3.0, 5.0, 7.0))
    np.testing.assert_allclose(corner, (affine @ [7, 5, 3, 1])[:3], atol=1e-3)


def test_truth_lies_on_the_source_series(cohort):
    test = cohort.parent / "test" / "test-000"
    source = read_series(test / "source")
    hu = sitk.GetArrayFromImage(source).astype(float)
    images = {
        name: sitk.ReadImage(str(test / "truth" / f"{name}.nii.gz"))
        for name in ("target", "source", "organs", "plaques")
    }
    for image in images.values():
        assert image.GetSize() == source.GetSize()
        np.testing.assert_allclose(image.GetOrigin(), source.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(image.GetSpacing(), source.GetSpacing(), atol=1e-4)
        np.testing.assert_allclose(image.GetDirection(), source.GetDirection(), atol=1e-6)
    arrays = {name: sitk.GetArrayFromImage(image) for name, image in images.items()}
    assert np.abs(hu - arrays["source"])[arrays["organs"] == Label.LIVER].mean() < 30
    rise = (arrays["target"].astype(float) - arrays["source"])[arrays["organs"] == Label.AORTA]
    assert 50 < rise.mean() < 160
    with (test / "truth" / "plaques.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        index = source.TransformPhysicalPointToIndex([float(row[f"{a}_mm"]) for a in "xyz"])
        z, y, x = index[::-1]
        assert arrays["plaques"][max(z - 1, 0) : z + 2, y - 1 : y + 2, x - 1 : x + 2].max() > 0


def test_no_subject_is_in_both_domains_and_no_two_series_are_acquired_alike(cohort):
    with cohort.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["domain"], row["phase"]) for row in rows] == [
        ("1", "non_contrast"), ("1", "non_contrast"), ("2", "portal"), ("2", "portal"),
    ]  # fmt: skip
    folders = [cohort.parent / row["path"] for row in rows]
    folders.append(cohort.parent / "test" / "test-000" / "source")
    first = [pydicom.dcmread(sorted(folder.glob("*.dcm"))[0]) for folder in folders]
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({header[keyword].value for header in first}) == len(first), keyword
    assert len({tuple(header.PixelSpacing) for header in first}) == len(first)
    assert len({tuple(header.ImagePositionPatient) for header in first}) == len(first)


def test_headers_say_what_a_scanner_says(cohort):
    for domain, contrast in (("domain1", False), ("domain2", True)):
        paths = sorted((cohort.parent / domain / f"{domain}-001").glob("*.dcm"))
        headers = [pydicom.dcmread(path) for path in paths]
        assert len({header.SOPInstanceUID for header in headers}) == TINY.shape[0]
        assert len({header.SeriesInstanceUID for header in headers}) == 1
        for header in headers:
            assert header.SOPInstanceUID.is_valid
            assert header.SeriesInstanceUID.is_valid
            assert (header.Modality, header.Manufacturer) == ("CT", "pmg phantom")
            assert header.SliceThickness == TINY.thickness_mm
            assert header.KVP == 120
            assert ("ContrastBolusAgent" in header) == contrast


def test_a_cohort_is_a_function_of_its_seed(cohort, tmp_path):
    def content(manifest: Path) -> list[tuple[str, bytes]]:
        files = [pydicom.dcmread(path) for path in sorted(manifest.parent.rglob("*.dcm"))]
        return [(file.SOPInstanceUID, file.PixelData) for file in files]

    assert content(write_cohort(tmp_path / "same", 5, 2, 1, TINY)) == content(cohort)
    other = dict(content(write_cohort(tmp_path / "other", 6, 2, 1, TINY)))
    assert not other.keys() & dict(content(cohort)).keys()


def test_progress_counts_every_subject(tmp_path):
    seen: list[tuple[int, int, str]] = []
    one_slice = replace(TINY, shape=(2, 48, 48))
    write_cohort(
        tmp_path, 1, 1, 1, one_slice, phase="arterial", progress=lambda *step: seen.append(step)
    )
    assert seen == [(1, 3, "domain1-000"), (2, 3, "domain2-000"), (3, 3, "test-000")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing_mm": (3.0, 0.0, 2.0)}, "spacing_mm"),
        ({"noise_sd_hu": (20.0, 10.0)}, "noise_sd_hu"),
        ({"blur_px": -1.0}, "blur_px"),
    ],
)
def test_an_impossible_protocol_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_an_impossible_cohort_is_refused(tmp_path):
    with pytest.raises(ValueError, match="phase 'venous'"):
        write_cohort(tmp_path, 0, 1, 1, TINY, phase="venous")
    with pytest.raises(ValueError, match="subjects_per_domain -1"):
        write_cohort(tmp_path, 0, -1, 1, TINY)
    with pytest.raises(ValueError, match="phase 'late'"):
        render(draw_subject(0), "late", TINY)


def test_test_cases_may_go_from_contrast_to_none(tmp_path):
    write_cohort(tmp_path, 5, 0, 1, TINY, test_domain=2)
    (case,) = (tmp_path / "test").iterdir()
    header = pydicom.dcmread(next((case / "source").glob("*.dcm")))
    assert "ContrastBolusAgent" in header
    target, bare = (read_nifti(case / "truth" / f"{name}.nii.gz") for name in ("target", "source"))
    aorta = read_nifti(case / "truth" / "organs.nii.gz").hu == Label.AORTA
    assert bare.hu[aorta].mean() - target.hu[aorta].mean() > 50
    assert target.hu[aorta].mean() < 80


def test_labelled_scans_show_contrast_under_their_labels_and_are_of_further_subjects(
    cohort, tmp_path
):
    write_cohort(tmp_path, 5, 2, 1, TINY, labelled_subjects=2)
    folders = sorted((tmp_path / "labelled").iterdir())
    assert [folder.name for folder in folders] == ["labelled-000", "labelled-001"]
    patients = set()
    for folder in folders:
        image, patient = read_series(folder / "source"), next((folder / "source").glob("*.dcm"))
        organs = read_nifti(folder / "organs.nii.gz")
        hu = sitk.GetArrayFromImage(image)
        assert hu.shape == organs.shape
        assert hu[inside(organs.hu, Label.LIVER)].mean() > 80
        share = read_nifti(folder / "plaques.nii.gz").hu
        assert share.shape == hu.shape
        assert 0 < share.max() <= 1
        patients.add(pydicom.dcmread(patient).PatientID)
    others = {pydicom.dcmread(file).PatientID for file in cohort.parent.rglob("*.dcm")}
    assert len(patients) == 2
    assert not patients & others
    everyone = {pydicom.dcmread(file).PatientID for file in tmp_path.rglob("*.dcm")}
    assert everyone == others | patients  # the others are who they are without the labelled
