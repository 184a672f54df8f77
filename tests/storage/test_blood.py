"""Blood's HU in phantoms of known phase and in real series whose vessels were measured by hand."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from storage.blood import blood_pool
from storage.phantom import Protocol, draw_subject, render
from storage.series import find_sources, read_source
from storage.volume import Volume

NOISE_HU = ((8.0, 15.0), (15.0, 25.0), (25.0, 35.0))


def protocol(seed):
    return Protocol(
        shape=(30, 128, 128),
        spacing_mm=(6.0, 3.2, 3.2),
        thickness_mm=6.0,
        noise_sd_hu=NOISE_HU[seed % 3],
    )


@pytest.mark.parametrize("seed", [11, 300, 301, 302])
def test_the_phases_of_a_phantom_are_told_apart_by_blood_at_any_noise(seed):
    subject = draw_subject(seed)
    hu = {
        phase: blood_pool(render(subject, phase, protocol(seed), seed)).hu
        for phase in ("non_contrast", "portal", "arterial")
    }
    assert 20 < hu["non_contrast"] < 75
    assert 90 < hu["portal"] < 230
    assert hu["portal"] < 1.2 * hu["arterial"]


def test_the_orientation_of_the_array_does_not_matter():
    volume = render(draw_subject(12), "portal", protocol(12), 12)
    turned = Volume(
        np.ascontiguousarray(volume.hu.transpose(2, 0, 1)[::-1]),
        volume.affine[:, [2, 0, 1, 3]] @ flip(volume.shape[2]),
    )
    assert blood_pool(turned) == blood_pool(volume)


def flip(size):
    matrix = np.diag([-1.0, 1, 1, 1])
    matrix[0, 3] = size - 1
    return matrix


def test_without_a_spine_or_with_too_few_slices_nothing_is_measured():
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, ::-1] * (4.0, 2.0, 2.0)
    noise = np.random.default_rng(0).normal(40, 20, (20, 60, 60)).astype(np.int16)
    assert blood_pool(Volume(noise, affine)) is None
    volume = render(draw_subject(12), "portal", protocol(12), 12)
    assert blood_pool(Volume(volume.hu[:3], volume.affine)) is None


CHESTS = Path(sysconfig.get_paths()["purelib"]) / "cerr/datasets/radiomics_phantom_dicom"

# Heart, vena cava and aorta by hand: pat_1 and pat_2 with contrast agent, cropped to the right
# lung; pat_3's descending aorta has 43 HU, that of pat_4 30.
MEASURED_HU = {"pat_1": (100, 160), "pat_2": (100, 200), "pat_3": (38, 48), "pat_4": (24, 45)}


@pytest.mark.real
@pytest.mark.parametrize("name", MEASURED_HU)
def test_real_chests_have_the_blood_that_was_measured_by_hand(name):
    if not (CHESTS / name).exists():
        pytest.skip(f"{CHESTS / name} is missing: pip install --no-deps pycerr==2.5.1")
    (source,), _ = find_sources(CHESTS / name)
    low, high = MEASURED_HU[name]
    assert low < blood_pool(read_source(source)[0]).hu < high
