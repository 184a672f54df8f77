"""The body's mask and frame on drawn patients whose extent is known exactly."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from storage.body import body_mask, frame_origin
from storage.errors import IngestError
from storage.phantom import PHASES, Label, Protocol, draw_subject, labels, render
from storage.volume import Volume

SPACING = (4.0, 1.5, 1.5)


def grid(shape, spacing=SPACING):
    """z, y, x in mm from the centre of the volume, and its affine."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, ::-1] * spacing
    return np.meshgrid(*axes, indexing="ij", sparse=True), affine


def patient(shape=(40, 150, 200), centre_mm=(0.0, 0.0), lungs_above_mm=0.0, table_mm=75.0):
    """An elliptic trunk, 120 mm thick and 180 mm wide; lungs above a level; a table; arms."""
    (z, y, x), affine = grid(shape)
    y, x = y - centre_mm[0], x - centre_mm[1]
    hu = np.random.default_rng(1).normal(-1000, 12, shape)
    body = np.broadcast_to((y / 60) ** 2 + (x / 90) ** 2 < 1, shape)
    hu = np.where(body, hu + 1040, hu)
    lung = body & ((y / 38) ** 2 + ((np.abs(x) - 40) / 28) ** 2 < 1) & (z > lungs_above_mm)
    hu = np.where(lung, hu - 880, hu)
    gas = body & (((y + 20) / 15) ** 2 + (x / 15) ** 2 < 1) & (z < lungs_above_mm - 8)
    hu = np.where(gas, -1000 + (hu - 40), hu)
    depth = y - table_mm
    hu = np.where((np.abs(depth) < 2) & (np.abs(x) < 110), 200, hu)  # the table's shell
    hu = np.where((depth >= 2) & (depth < 25) & (np.abs(x) < 110), -880, hu)  # and foam
    hu = np.where((y / 12) ** 2 + ((np.abs(x) - 125) / 12) ** 2 < 1, 50, hu)
    return Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), affine), body


def with_hu(volume, where, hu):
    return Volume(np.where(where, hu, volume.hu).astype(np.int16), volume.affine)


def slices(volume, chosen):
    """Some slices of the volume, where they lie."""
    start = range(volume.shape[0])[chosen][0]
    affine = volume.affine.copy()
    affine[:, 3] += start * affine[:, 0]
    return Volume(volume.hu[chosen], affine)


def overlap(mask, truth):
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


def test_the_mask_is_the_trunk_with_lungs_and_bowel_gas_without_table_and_arms():
    volume, body = patient()
    mask = body_mask(volume)
    assert mask.shape == volume.shape
    assert mask.dtype == bool
    assert overlap(mask, body) > 0.995
    assert mask[body & (volume.hu < -700)].mean() > 0.99


def test_the_mask_follows_the_border_at_full_resolution():
    (_, y, x), affine = grid((6, 200, 200), (1.0, 0.8, 0.8))
    truth = np.broadcast_to(y**2 + x**2 < 60**2, (6, 200, 200))
    mask = body_mask(Volume(np.where(truth, 30, -1000).astype(np.int16), affine))
    np.testing.assert_array_equal(mask, truth)


def test_a_lung_cut_by_the_field_of_view_belongs_to_the_body_and_a_tables_foam_does_not():
    volume, body = patient()
    cut = np.s_[:, :, 75:]  # through the lung on the right
    mask = body_mask(Volume(np.ascontiguousarray(volume.hu[cut]), volume.affine))
    assert overlap(mask, body[cut]) > 0.99
    volume, body = patient(table_mm=64)
    foam = np.s_[:, 20:134, 70:130]  # below the body there is more foam than air
    mask = body_mask(Volume(np.ascontiguousarray(volume.hu[foam]), volume.affine))
    assert overlap(mask, body[foam]) > 0.99


def test_float_volumes_have_the_same_mask():
    volume, _ = patient(shape=(10, 100, 140))
    as_float = Volume(volume.hu.astype(np.float32), volume.affine)
    np.testing.assert_array_equal(body_mask(as_float), body_mask(volume))


@pytest.mark.parametrize("spacing", [(0.5, 0.45, 0.45), (10.0, 6.0, 5.0)])
def test_the_mask_works_at_any_resolution(spacing):
    shape = tuple(int(mm / step) for mm, step in zip((20, 110, 130), spacing, strict=True))
    (_, y, x), affine = grid(shape, spacing)
    truth = np.broadcast_to((y / 42) ** 2 + (x / 50) ** 2 < 1, shape)
    mask = body_mask(Volume(np.where(truth, 30, -1000).astype(np.int16), affine))
    assert overlap(mask, truth) > 0.97


@pytest.mark.parametrize("centre_mm", [(0, 0), (-12, 21)])
@pytest.mark.parametrize("lungs_above_mm", [-30, 10])
def test_the_frame_starts_at_the_base_of_the_lungs_in_the_middle_of_the_body(
    centre_mm, lungs_above_mm
):
    volume, _ = patient(centre_mm=centre_mm, lungs_above_mm=lungs_above_mm)
    origin = frame_origin(volume, body_mask(volume))
    (z, y, x), _ = grid(volume.shape)
    assert origin.rule == "lung base"
    assert origin.index[0] == np.flatnonzero(z.ravel() > lungs_above_mm)[0]
    assert y.ravel()[origin.index[1]] == pytest.approx(centre_mm[0], abs=1.6)
    assert x.ravel()[origin.index[2]] == pytest.approx(centre_mm[1], abs=1.6)


@pytest.mark.parametrize(
    ("lungs_above_mm", "why"),
    [(-500, "the lungs do not end in the volume"), (70, "too little lung"), (500, "no lung")],
)
def test_without_a_base_of_lungs_the_frame_starts_in_the_middle_slice(lungs_above_mm, why):
    volume, _ = patient(lungs_above_mm=lungs_above_mm)
    origin = frame_origin(volume, body_mask(volume))
    assert (origin.rule, origin.index[0]) == ("middle of the body", 20), why


@pytest.mark.parametrize("hu", [-1000, -620], ids=["gas", "foaming stool"])
@pytest.mark.parametrize("noise_hu", [0, 40])
def test_a_bowel_as_wide_as_lungs_is_not_taken_for_them(hu, noise_hu):
    volume, _ = patient()
    (z, y, x), _ = grid(volume.shape)
    noise = np.random.default_rng(2).normal(0, noise_hu, volume.shape)
    colon = (z > -70) & (z < -12) & ((y / 40) ** 2 + (x / 50) ** 2 < 1)  # 60 cm^2
    volume = with_hu(volume, colon, hu + noise)
    origin = frame_origin(volume, body_mask(volume))
    assert (origin.rule, origin.index[0]) == ("lung base", 20)


def test_gas_that_reaches_out_of_a_volume_without_lungs_is_no_lung():
    volume, _ = patient(lungs_above_mm=500)
    (z, y, x), _ = grid(volume.shape)
    volume = with_hu(volume, (z > 30) & ((y / 40) ** 2 + (x / 50) ** 2 < 1), -960)
    assert frame_origin(volume, body_mask(volume)).rule == "middle of the body"


def test_lungs_half_destroyed_by_emphysema_are_lungs():
    volume, _ = patient()
    lung = (volume.hu > -950) & (volume.hu < -750)  # -840 +- 12
    holes = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=volume.shape), 1.5)
    holes = ndimage.binary_closing(lung) & (holes > np.median(holes[lung]))
    volume = with_hu(volume, holes, np.random.default_rng(4).normal(-975, 12, volume.shape))
    origin = frame_origin(volume, body_mask(volume))
    assert (origin.rule, origin.index[0]) == ("lung base", 20)


COARSE = Protocol(shape=(36, 96, 104), spacing_mm=(5.0, 4.0, 4.0), thickness_mm=5.0, blur_px=0.5)
NOISE_HU = ((5.0, 8.0), (12.0, 25.0), (25.0, 35.0))


@pytest.mark.parametrize("seed", range(6))
def test_a_phantoms_frame_starts_at_the_base_of_its_lungs_in_every_phase_and_noise(seed):
    """Most of these subjects have gas of more than 20 cm^2 in some slices of their bowel."""
    subject = draw_subject(seed)
    protocol = replace(COARSE, noise_sd_hu=NOISE_HU[seed // 2])
    volume = render(subject, PHASES[seed % 3], protocol, seed)
    lung = labels(subject, protocol).organs == Label.LUNG
    base = np.flatnonzero(lung.sum(axis=(1, 2)) * 4 * 4 >= 2000)[0]
    origin = frame_origin(volume, body_mask(volume))
    assert origin.rule == "lung base"
    assert abs(origin.index[0] - base) * 5 <= 12


def test_the_frame_starts_at_one_point_of_the_patient_whatever_part_of_him_is_in_view():
    protocol = replace(COARSE, shape=(90, 96, 104), centre_mm=(0.0, -30.0, 90.0))
    whole = render(draw_subject(4), "non_contrast", protocol, 4)
    base = frame_origin(whole, body_mask(whole)).index[0]
    expected = whole.affine @ (*frame_origin(whole, body_mask(whole)).index, 1)
    for name, seen in {
        "abdomen": slice(base - 40, base + 8),
        "chest": slice(base - 6, None),
        "chest without the lungs' lowest tip": slice(base + 1, None),
    }.items():
        part = slices(whole, seen)
        origin = frame_origin(part, body_mask(part))
        assert origin.rule == "lung base", name
        moved_mm = np.abs(part.affine @ (*origin.index, 1) - expected)
        assert (moved_mm <= (4, 8, 10, 0)).all(), name
    upper = slices(whole, slice(base + 12, None))  # from the domes of the diaphragm on
    assert frame_origin(upper, body_mask(upper)).rule == "middle of the body"


def test_an_arm_at_the_side_and_a_hand_on_the_belly_do_not_move_the_frame():
    volume, _ = patient()
    (_, y, x), _ = grid(volume.shape)
    expected = frame_origin(volume, body_mask(volume))
    arm = ((y / 20) ** 2 + ((x - 100) / 20) ** 2 < 1) & (volume.hu < -900)
    hand = (((y + 62) / 12) ** 2 + ((x + 10) / 40) ** 2 < 1) & (volume.hu < -900)
    volume = with_hu(volume, arm | hand, 50)
    mask = body_mask(volume)
    assert mask[:, :, -28].any()
    assert frame_origin(volume, mask) == expected


def test_a_few_odd_slices_do_not_move_the_frame():
    volume, _ = patient()
    mask = body_mask(volume)
    expected = frame_origin(volume, mask)
    mask[:8, :, :30] = True
    assert frame_origin(volume, mask) == expected


def test_a_body_thinner_than_a_coarse_voxel_has_a_frame():
    _, affine = grid((9, 30, 30), (1.0, 1.0, 1.0))
    mask = np.zeros((9, 30, 30), bool)
    mask[4, 14, 10:21] = True
    origin = frame_origin(Volume(np.zeros(mask.shape, np.int16), affine), mask)
    assert (origin.rule, origin.index) == ("middle of the body", (4, 14, 15))


def test_a_volume_of_air_has_no_body_and_no_frame():
    (_, affine) = grid((5, 20, 20))
    air = Volume(np.full((5, 20, 20), -1000, np.int16), affine)
    mask = body_mask(air)
    assert not mask.any()
    with pytest.raises(IngestError, match=r"above -300 HU \(maximum -1000\)"):
        frame_origin(air, mask)


def shell(y, x, top_mm, kind):
    """Where a table is, by its kind: HU by name of the part. top_mm: its surface, on x = 0."""
    flat, curved = y - top_mm, y - top_mm + np.minimum(x**2, 110**2) / 400
    wide = np.abs(x) < 110
    return {
        "flat, foam between two shells": [
            (wide & (flat >= 0) & (flat < 25), -880),
            (wide & ((flat >= 0) & (flat < 3) | (flat >= 22) & (flat < 25)), 200),
        ],
        "curved cradle": [
            (wide & (curved >= 0) & (curved < 20), -850),
            (wide & (curved >= 0) & (curved < 3), 300),
        ],
        "board of carbon fibre": [(wide & (flat >= 0) & (flat < 3), -100)],
        "rails of metal": [
            (wide & (flat >= 0) & (flat < 20), -900),
            ((flat - 12) ** 2 + (np.abs(x) - 100) ** 2 < 5**2, 2500),
        ],
        "mattress of foam": [
            (wide & (flat >= 0) & (flat < 30), -950),
            (wide & (flat >= 30) & (flat < 33), 150),
        ],
    }[kind]


TABLES = (
    "flat, foam between two shells",
    "curved cradle",
    "board of carbon fibre",
    "rails of metal",
    "mattress of foam",
)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("gap_mm", [-3.0, 0.0, 8.0])
def test_no_kind_of_table_is_body_whether_the_patient_lies_on_it_or_above(kind, gap_mm):
    """With a gap below 0 the patient's back is pressed into the table, 3 mm deep."""
    volume, body = patient(table_mm=500)
    (_, y, x), _ = grid(volume.shape)
    outside = ~body
    hu, table = volume.hu, np.zeros(volume.shape, bool)
    for part, value in shell(y, x, 60 + gap_mm, kind):
        where = np.broadcast_to(part, volume.shape) & outside
        hu, table = np.where(where, value, hu), table | where
    mask = body_mask(Volume(hu.astype(np.int16), volume.affine))
    assert overlap(mask, body) > 0.985
    # Where the back touches it, the shell cannot be told from skin: one coarse voxel (3 mm here) of
    # it stays, beside the one that body and shell share.
    far_mm = ndimage.distance_transform_edt(~body, sampling=SPACING)
    assert far_mm[mask & table].max(initial=0) < 5
    assert (mask & table).sum() < (0.011 * body.sum() if gap_mm <= 0 else 1)


@pytest.mark.parametrize("seed", range(3))
def test_a_phantoms_table_and_blanket_are_not_in_its_mask(seed):
    volume = render(draw_subject(40 + seed), "portal", COARSE, seed)
    bare = body_mask(volume)
    (_, y, x), _ = grid(volume.shape, COARSE.spacing_mm)
    back = np.flatnonzero(bare.any(axis=(0, 2)))[-1]
    top = y.ravel()[back] + 4
    hu = volume.hu
    for part, value in shell(y, x, top, TABLES[seed]):
        hu = np.where(np.broadcast_to(part, volume.shape) & ~bare, value, hu)
    front = np.flatnonzero(bare.any(axis=(0, 2)))[0]
    blanket = (np.abs(y - y.ravel()[front] + 6) < 2) & (np.abs(x) < 120)
    hu = np.where(np.broadcast_to(blanket, volume.shape) & ~bare, -60, hu)
    mask = body_mask(Volume(hu.astype(np.int16), volume.affine))
    assert overlap(mask, bare) > 0.98
