"""Real CT from two PyPI packages (see the test set-up), against SimpleITK's own reading."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from storage.body import body_mask, frame_origin
from storage.grid import canonical, resample_like
from storage.series import find_sources, read_source
from storage.volume import Volume

pytestmark = pytest.mark.real

SITE = Path(sysconfig.get_paths()["purelib"])
CHESTS = SITE / "cerr/datasets/radiomics_phantom_dicom"
ABDOMEN = SITE / "body_organ_analysis/_external/nnunetv2/tests/example_data/example_ct_sm.nii.gz"
PATHS = {**{f"pat_{n}": CHESTS / f"pat_{n}" for n in (1, 2, 3, 4)}, "abdomen": ABDOMEN}

# What a radiologist sees in them: share of the field of view that is body, lungs' base or none.
BODY_SHARE = {"pat_1": 0.80, "pat_2": 1.0, "pat_3": 1.0, "pat_4": 0.82, "abdomen": 0.65}
LUNG_BASE = {"pat_1": (12, 20), "pat_4": (3, 12), "abdomen": (21, 25)}


@pytest.fixture(params=PATHS)
def name(request):
    if not PATHS[request.param].exists():
        pytest.skip(
            f"{PATHS[request.param]} is missing: pip install --no-deps pycerr==2.5.1 "
            "body-organ-analysis==1.0.3"
        )
    return request.param


@pytest.fixture
def source(name):
    (source,), _ = find_sources(PATHS[name])
    return source


def by_simpleitk(source):
    if source.kind == "nifti":
        image = sitk.ReadImage(str(source.files[0]))
    else:
        reader = sitk.ImageSeriesReader()
        folder = str(source.files[0].parent)
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder, source.key))
        image = reader.Execute()
    affine = np.eye(4)
    columns = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, :3] = columns[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), affine)


def test_voxels_and_affine_are_exactly_those_of_simpleitk(source):
    volume, headers = read_source(source)
    ours, theirs = canonical(volume), canonical(by_simpleitk(source))
    np.testing.assert_array_equal(ours.hu, theirs.hu)
    np.testing.assert_allclose(ours.affine, theirs.affine, rtol=0, atol=1e-6)
    assert ours.hu.dtype == np.int16
    assert len(headers) == (len(source.files) if source.kind == "dicom" else 0)
    np.testing.assert_array_equal(resample_like(ours, volume).hu, volume.hu)


def test_structure_sets_beside_the_images_are_refused_and_not_read(name):
    sources, refusals = find_sources(PATHS[name])
    assert len(sources) == 1
    assert all("RT Structure Set" in refusal.reason for refusal in refusals)
    assert len(refusals) == (1 if name.startswith("pat") else 0)


def test_the_mask_holds_the_patient_and_not_the_air_around(name, source):
    volume = canonical(read_source(source)[0])
    mask = body_mask(volume)
    assert mask.mean() == pytest.approx(BODY_SHARE[name], abs=0.02)
    assert mask[volume.hu > 150].mean() > 0.98  # bone; what is missing are table and wires
    # Outside are air, foam and the table's shell.
    assert np.median(volume.hu[~mask]) < -900 or mask.mean() > 0.98


def test_the_frame_starts_at_the_lungs_base_where_it_is_in_view(name, source):
    volume = canonical(read_source(source)[0])
    origin = frame_origin(volume, body_mask(volume))
    if name in LUNG_BASE:
        low, high = LUNG_BASE[name]
        assert origin.rule == "lung base"
        assert low <= origin.index[0] <= high
    else:
        assert origin.rule == "middle of the body"
        assert origin.index[0] == len(volume.hu) // 2
