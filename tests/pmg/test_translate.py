"""Whole volumes: the same HU whatever the tiles, on the source's own grid, and back again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import shaken, tiny_config

from pmg.config import Config, TranslateConfig
from pmg.mixture import fit_mixture
from pmg.model import Translator
from pmg.noise import PlaceNoise
from pmg.translate import VolumeTranslator, Wanted
from storage.body import body_mask
from storage.grid import canonical
from storage.volume import Volume

CPU = torch.device("cpu")
GRID_MM = (4.0, 3.0, 3.0)


def affine(*spacing_mm: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3)[:, ::-1] * spacing_mm
    matrix[:3, 3] = (-150.0, -90.0, 20.0)
    return matrix


def trunk(spacing_mm: tuple[float, float, float] = GRID_MM) -> Volume:
    """An ellipse of noisy tissue in air, some slices of it with bone."""
    shape = [round(mm / s) for mm, s in zip((44, 200, 300), spacing_mm, strict=True)]
    _, y, x = np.indices(shape)
    y, x = y * spacing_mm[1] - 100, x * spacing_mm[2] - 150
    body = (y / 80) ** 2 + (x / 125) ** 2 < 1
    hu = np.where(body, 40.0, -1000.0)
    hu[(np.hypot(y - 50, x) < 12) & body] = 600
    hu[body] += np.random.default_rng(2).normal(0, 12, int(body.sum()))
    return Volume(hu.astype(np.int16), affine(*spacing_mm))


def config(flat: bool = True, **translate) -> Config:
    patch = (16, 16) if flat else (16, 16, 16)
    return tiny_config(
        data={"patch": patch, "spacing_mm": GRID_MM},
        model={"blocks": 1},
        translate={"tile": patch, **translate},
    )


def translator(settings: Config) -> VolumeTranslator:
    torch.manual_seed(4)
    model = shaken(Translator(settings), seed=2, scale=0.05).eval()
    return VolumeTranslator(model, settings, 1, CPU)


@pytest.mark.parametrize("flat", [True, False], ids=["2D", "3D"])
def test_tiles_and_overlaps_differ_by_at_most_1_hu_from_the_whole_in_the_body(flat):
    volume = trunk()
    large = (512,) * (2 if flat else 3)
    whole = translator(config(flat, tile=large)).translate(volume).hu.astype(int)
    body = body_mask(canonical(volume))
    assert np.abs(whole - volume.hu)[body].mean() > 2
    axes = len(large)
    for tile, overlap in (((24,) * axes, 0.0), ((32,) * axes, 0.25), ((32,) * axes, 0.5)):
        tiled = translator(config(flat, tile=tile, overlap=overlap)).translate(volume)
        assert np.abs(tiled.hu - whole)[body].max() <= 1


@pytest.mark.parametrize("flat", [True, False], ids=["2D", "3D"])
def test_a_slice_that_is_shown_is_the_one_that_is_written(flat):
    volume = trunk()
    chosen = translator(config(flat))
    written = chosen.translate(volume)
    z = 6
    view = chosen.slice(volume, volume.affine[2, 3] + z * GRID_MM[0], truth=volume)
    body = body_mask(canonical(volume))[z]
    assert np.abs(view.translation - written.hu[z])[body].max() <= 1
    np.testing.assert_array_equal(view.truth, volume.hu[z])
    assert view.tissue.shape == volume.hu[z].shape


def test_what_lies_outside_of_the_body_stays_as_it_is():
    volume = trunk()
    outside = ~body_mask(canonical(volume))
    translated = translator(config()).translate(volume)
    np.testing.assert_array_equal(translated.hu[outside], volume.hu[outside])


@pytest.mark.parametrize("parts", [1, 7])
def test_a_finer_source_is_changed_on_its_own_grid_in_parts_of_any_size(parts, monkeypatch):
    volume = trunk((2.0, 2.0, 2.0))
    expected = translator(config()).translate(volume)
    assert expected.shape == volume.shape
    assert np.abs(expected.hu.astype(int) - volume.hu).mean() > 1
    monkeypatch.setattr("pmg.translate._SLICES", parts)
    np.testing.assert_array_equal(translator(config()).translate(volume).hu, expected.hu)


def test_reversed_translates_from_the_other_domain():
    settings = config()
    forth = translator(settings)
    torch.manual_seed(4)
    model = shaken(Translator(settings), seed=2, scale=0.05).eval()
    back = VolumeTranslator(model, settings, 2, CPU)
    np.testing.assert_array_equal(
        forth.reversed().translate(trunk()).hu, back.translate(trunk()).hu
    )
    assert (forth.translate(trunk()).hu != back.translate(trunk()).hu).any()


def stack_translator(**translate) -> VolumeTranslator:
    settings = tiny_config(
        data={"patch": (16, 16), "slices": 3, "spacing_mm": GRID_MM},
        model={"blocks": 1},
        translate={"tile": (512, 512), **translate},
    )
    return translator(settings)


def test_a_slice_of_a_stack_is_decided_by_its_neighbours_alone():
    volume = trunk()
    whole = stack_translator().translate(volume).hu
    body = body_mask(canonical(volume))
    altered = Volume(volume.hu.copy(), volume.affine)
    altered.hu[5] += (np.arange(volume.shape[2]) % 7 * 10).astype(np.int16)
    change = stack_translator().translate(altered).hu - altered.hu - (whole - volume.hu)
    moved = {z for z in range(volume.shape[0]) if np.abs(change[z][body[z]]).max() > 1}
    assert moved == {4, 5, 6}


def test_stacks_in_tiles_give_what_the_whole_slice_gives_up_to_the_volumes_ends():
    volume = trunk()
    whole = stack_translator().translate(volume).hu.astype(int)
    tiled = stack_translator(tile=(24, 24), overlap=0.25, batch=3).translate(volume).hu
    body = body_mask(canonical(volume))
    assert np.abs(whole - volume.hu)[body].mean() > 2
    assert np.abs(tiled - whole)[body].max() <= 1


@pytest.mark.parametrize("z", [0, 1, 6, -1])
def test_a_slice_of_a_stack_that_is_shown_is_the_one_that_is_written(z):
    volume = trunk()
    chosen = stack_translator()
    written = chosen.translate(volume).hu[z]
    height = volume.affine[2, 3] + (z % volume.shape[0]) * GRID_MM[0]
    view = chosen.slice(volume, height)
    body = body_mask(canonical(volume))[z]
    assert np.abs(view.translation - written)[body].max() <= 1


def test_a_volume_of_fewer_slices_than_a_stack_is_continued_by_its_last():
    volume = trunk()
    thin = Volume(volume.hu[:2], volume.affine)
    continued = Volume(np.concatenate([thin.hu, thin.hu[1:]]), volume.affine)
    chosen = stack_translator()
    body = body_mask(canonical(thin))
    expected = chosen.slice(continued, volume.affine[2, 3]).translation
    assert np.abs(chosen.translate(thin).hu[0] - expected)[body[0]].max() <= 1


SAMPLED = Wanted(samples=4, seed=3, responsibilities=True)


@pytest.mark.parametrize("flat", [True, False], ids=["2D", "3D"])
def test_samples_in_tiles_agree_with_samples_of_the_whole(flat):
    volume, axes = trunk(), 2 if flat else 3
    body = body_mask(canonical(volume))
    whole = translator(config(flat, tile=(512,) * axes)).predict(volume, SAMPLED)
    assert whole.uncertainty.hu[body].mean() > 0.5
    for tile, overlap in ((24, 0.0), (32, 0.5)):
        settings = config(flat, tile=(tile,) * axes, overlap=overlap, batch=3)
        tiled = translator(settings).predict(volume, SAMPLED)
        change = tiled.volume.hu.astype(int) - whole.volume.hu
        assert np.abs(change)[body].max() <= 1
        assert np.abs(tiled.uncertainty.hu - whole.uncertainty.hu)[body].max() < 0.5
        for own, other in zip(tiled.responsibilities, whole.responsibilities, strict=True):
            assert np.abs(own.hu.astype(int) - other.hu)[body].max() <= 1


def test_mean_and_spread_are_those_of_the_samples_one_by_one():
    volume = trunk()
    settings = config(tile=(512, 512))
    chosen = translator(settings)
    model, window = chosen._model, chosen._window
    z = 6
    where = chosen._where(
        torch.tensor([[z, 0, 0]]), chosen._frame_start_mm(volume, body_mask(canonical(volume)))
    )
    x = torch.zeros(1, 1, *(n + n % 2 for n in volume.shape[1:]))
    plane = torch.from_numpy(volume.hu[z].astype(np.float32))
    x[0, 0] = window.to_unit(
        torch.nn.functional.pad(
            plane[None, None],
            (0, x.shape[3] - plane.shape[1], 0, x.shape[2] - plane.shape[0]),
            mode="replicate",
        )
    )[0, 0]
    noise = PlaceNoise(seed=9, channels=4)
    images = []
    with torch.no_grad():
        q = model.encode(1, x, where)
        for n in range(5):
            draw = noise.at(n, (z, 0, 0), (1, *q.mean.shape[2:]))[None, :, 0]
            images.append(window.to_hu(model.decode(2, q.sample(draw), where))[0, 0])
    images = torch.stack(images)[:, : plane.shape[0], : plane.shape[1]].numpy()
    result = chosen.predict(volume, Wanted(samples=5, seed=9))
    body = body_mask(canonical(volume))[z]
    assert np.abs(result.volume.hu[z] - images.mean(axis=0))[body].max() <= 1
    spread = result.uncertainty.hu[z]
    np.testing.assert_allclose(spread[body], images.std(axis=0, ddof=1)[body], atol=0.05)
    assert not spread[~body].any()


def test_responsibilities_are_percentages_of_all_components():
    volume = trunk((2.0, 2.0, 2.0))
    shares = translator(config()).predict(volume, Wanted(responsibilities=True)).responsibilities
    assert [one.hu.dtype for one in shares] == [np.uint8] * 3
    total = np.sum([one.hu.astype(int) for one in shares], axis=0)
    body = body_mask(canonical(volume))
    assert np.abs(total[body] - 100).max() <= 2


def test_another_seed_draws_another_sample_and_the_same_one_the_same():
    volume = trunk()
    results = [
        translator(config()).predict(volume, Wanted(samples=2, seed=seed)).volume.hu
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


def test_one_sample_has_no_spread_and_is_refused():
    with pytest.raises(ValueError, match="samples 1: expected 0"):
        Wanted(samples=1)


def phantom(seed: int) -> Volume:
    """An ellipse of noisy tissue beside fat, with a plaque of 500 HU in its middle."""
    _, y, x = np.indices((24, 64, 96))
    body = ((y - 32) / 26) ** 2 + ((x - 48) / 40) ** 2 < 1
    hu = np.where(body, np.where(x > 60, -100.0, 50.0), -1000.0)
    hu[10:14, 31:34, 44:47] = 500
    hu[body] += np.random.default_rng(seed).normal(0, 12, int(body.sum()))
    return Volume(hu.astype(np.int16), affine(*GRID_MM))


KINDS = {
    "2D": {"data": {"patch": (16, 16), "slices": 1}, "model": {"latent_channels": 4}},
    "2.5D": {"data": {"patch": (16, 16), "slices": 3}, "model": {"latent_channels": 12}},
    "3D": {"data": {"patch": (16, 16, 16)}, "model": {"latent_channels": 8}},
}


def denoiser(kind: str, tile: int = 512, *, denoise: bool = True, components: int = 8):
    """A model that translates nothing, with the mixture of a scan's encodings as its prior."""
    data, model = KINDS[kind]["data"], KINDS[kind]["model"]
    settings = tiny_config(
        data={**data, "spacing_mm": GRID_MM, "scale_hu": 150},
        model={**model, "blocks": 1, "skip": True, "posterior": "learned"},
        prior={"components": components, "min_std": 1e-3},
        translate={"tile": (tile,) * len(data["patch"]), "denoise": denoise},
    )
    torch.manual_seed(4)
    module = Translator(settings).eval()
    as_a_whole = TranslateConfig(tile=(512,) * len(data["patch"]))
    noisy = settings.model_copy(update={"translate": as_a_whole})
    sees = VolumeTranslator(module, noisy, 1, CPU)
    encodings = []
    hook = module.encoders[0].register_forward_hook(lambda *call: encodings.append(call[2].mean))
    sees.translate(phantom(1))
    hook.remove()
    z = torch.cat([q.movedim(1, -1).flatten(0, -2) for q in encodings])
    with torch.no_grad():
        for name, value in module.prior.raw_from(fit_mixture(z, components)).items():
            getattr(module.prior, name).copy_(value)
    return VolumeTranslator(module, settings, 1, CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_denoising_leaves_out_a_tissues_noise_and_keeps_its_hu_and_the_plaque(kind):
    scan = phantom(2)
    as_it_is = denoiser(kind, denoise=False).translate(scan).hu
    translated = denoiser(kind).translate(scan).hu
    fat, tissue = (np.s_[6:18, 24:40, a:b] for a, b in ((66, 80), (16, 36)))
    for part in (fat, tissue):
        assert translated[part].std() < 0.7 * as_it_is[part].std()
        assert abs(translated[part].mean() - as_it_is[part].mean()) < 2
    plaque = np.s_[11:13, 32, 45]
    assert (np.abs(translated[plaque] - as_it_is[plaque].astype(int)) < 40).all()


def test_one_gaussian_cannot_tell_noise_from_tissue():
    scan = phantom(2)
    tissue = np.s_[6:18, 24:40, 16:36]
    assert denoiser("2D", components=1).translate(scan).hu[tissue].std() > 0.9 * 12


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_left_out_alike_in_tiles_and_of_the_slice_that_is_shown(kind):
    scan = phantom(2)
    body = body_mask(canonical(scan))
    whole = denoiser(kind).translate(scan).hu.astype(int)
    tiled = denoiser(kind, tile=24).translate(scan).hu
    assert np.abs(tiled - whole)[body].max() <= 1
    view = denoiser(kind).slice(scan, scan.affine[2, 3] + 9 * GRID_MM[0])
    assert np.abs(view.translation - whole[9])[body[9]].max() <= 1


@pytest.mark.parametrize(
    "part", [np.s_[:1], np.s_[:, 32:33], np.s_[:, :, 48:49]], ids=["slice", "row", "column"]
)
def test_a_volume_too_thin_to_tell_its_noise_is_translated_with_it(part):
    thin = Volume(phantom(2).hu[part], affine(*GRID_MM))
    with_noise = denoiser("2D", denoise=False).translate(thin).hu
    np.testing.assert_array_equal(denoiser("2D").translate(thin).hu, with_noise)


def test_a_volume_without_body_stays_as_it_is():
    air = Volume(np.full((6, 40, 40), -1000, np.int16), affine(*GRID_MM))
    np.testing.assert_array_equal(translator(config()).translate(air).hu, air.hu)


_MEASURED = """
import sys, numpy as np, torch
sys.path.insert(0, {here!r})
from test_translate import config, translator, affine
from storage.volume import Volume
torch.set_num_threads(1)
_, y, x = np.indices((1, 128, 160))
plane = np.where(((y - 64) / 52) ** 2 + ((x - 80) / 66) ** 2 < 1, 40, -1000)
for slices in (16, 40, 200):
    hu = np.repeat(plane.astype(np.int16), slices, axis=0)
    translator(config(tile=(512, 512), batch=1)).translate(Volume(hu, affine(4.0, 3.0, 3.0)))
    with open("/proc/self/status") as file:
        peak = dict(line.split(":", 1) for line in file)["VmHWM"]
    print(int(peak.split()[0]) * 1024 / (128 * 160))
"""


def test_every_slice_more_needs_the_volumes_own_memory_and_nothing_of_the_networks():
    code = _MEASURED.format(here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _, some, many = (float(line) for line in done.stdout.split())
    # Bytes a voxel: 2 of the source, 2 of the result, 4 of the change, the rest to find the body.
    assert (many - some) / (200 - 40) < 30
