"""Encoders, generators and discriminators: shapes, locality, sharing, and where they start."""

from __future__ import annotations

import pytest
import torch
from tiny import SPACING_MM, patches, places, shaken, tiny_config
from torch import nn

from pmg.model import Critic, Translator, other
from pmg.networks import _LINEAR, Posterior, norm_layer
from pmg.where import Where


def translator(seed: int = 0, dims: int = 2, **model) -> Translator:
    """A fresh one; other fields of the model's section by name."""
    config = tiny_config(
        data={"patch": (16,) * dims}, translate={"tile": (16,) * dims}, model=model
    )
    torch.manual_seed(seed)
    return Translator(config)


def storages(module: nn.Module) -> set[int]:
    return {p.data_ptr() for p in module.parameters()}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("downsamplings", [1, 2, 3])
@pytest.mark.parametrize("skip", [True, False])
def test_latent_is_smaller_by_the_stride_and_patches_keep_their_shape(dims, downsamplings, skip):
    shape = (8, 16, 24)[-dims:]
    model = translator(
        dims=dims, downsamplings=downsamplings, latent_channels=3, skip=skip, width=2
    )
    x, where = patches(2, 1, *shape), places(2)
    posterior = model.encode(1, x, where)
    latent = (2, 3, *(n // 2**downsamplings for n in shape))
    assert posterior.mean.shape == posterior.log_var.shape == latent
    assert model.decode(2, posterior.mean, where).shape == x.shape
    translated, behind = model.translate(1, x, where)
    assert translated.shape == x.shape
    torch.testing.assert_close(behind.mean, posterior.mean)


@pytest.mark.parametrize("dims", [2, 3])
def test_discriminators_score_every_scale_by_blocks(dims):
    config = tiny_config(
        data={"patch": (16,) * dims},
        translate={"tile": (16,) * dims},
        discriminator={"layers": 2, "scales": 2},
    )
    critic = Critic(config)
    shape = (16, 24, 32)[-dims:]
    scores = critic.scores(1, patches(2, 1, *shape), places(2))
    assert [s.shape for s in scores] == [
        (2, 1, *(n // 4 for n in shape)),
        (2, 1, *(n // 8 for n in shape)),
    ]


@pytest.mark.parametrize(("dims", "downsamplings"), [(2, 1), (2, 2), (3, 1)])
def test_a_fresh_model_translates_to_the_identity_with_as_many_channels_as_voxels(
    dims, downsamplings
):
    stride = 2**downsamplings
    model = translator(dims=dims, downsamplings=downsamplings, latent_channels=stride**dims)
    x = patches(2, 1, *(16,) * dims)
    for source in (1, 2):
        translated, _ = model.translate(source, x, places(2))
        assert (translated - x).abs().max() < 1e-5


def test_a_fresh_model_without_the_linear_path_starts_as_no_identity():
    x = patches(2, 1, 16, 16)
    translated, _ = translator(skip=False).translate(1, x, places(2))
    assert (translated - x).abs().max() > 0.1


def test_both_domains_start_alike_and_translation_as_reconstruction():
    model = translator(skip=False)
    x, where = patches(2, 1, 16, 16), places(2)
    q = {i: model.encode(i, x, where) for i in (1, 2)}
    torch.testing.assert_close(q[1].mean, q[2].mean)
    for i in (1, 2):
        torch.testing.assert_close(
            model.decode(1, q[i].mean, where), model.decode(2, q[i].mean, where)
        )


def test_shared_blocks_are_one_storage_for_both_domains():
    model = translator(shared_blocks=1)
    one, two = model.encoders
    assert storages(one) & storages(two) == storages(one.tail) != set()
    one, two = model.generators
    assert storages(one) & storages(two) == storages(one.head) != set()


def test_changing_a_shared_block_of_one_domain_changes_the_other():
    model = shaken(translator(shared_blocks=1))
    x, where = patches(1, 1, 16, 16), places(1)
    before = model.encode(2, x, where).mean
    shaken(model.encoders[0].tail, seed=1)
    assert not torch.allclose(model.encode(2, x, where).mean, before)


def test_no_shared_blocks_share_nothing():
    model = shaken(translator(shared_blocks=0))
    for pair in (model.encoders, model.generators):
        assert not storages(pair[0]) & storages(pair[1])
    x, where = patches(1, 1, 16, 16), places(1)
    before = model.encode(2, x, where).mean
    shaken(model.encoders[0], seed=1)
    assert torch.equal(model.encode(2, x, where).mean, before)


def test_one_more_shared_block_is_one_fewer_of_each_domain():
    def count(shared: int) -> int:
        return sum(p.numel() for p in translator(shared_blocks=shared).parameters())

    # A block of the encoders and one of the generators exist once instead of twice. Going from
    # none to one also merges the tails' and heads' own layers.
    assert count(1) - count(2) == sum(
        2 * p.numel() for p in translator(shared_blocks=2).encoders[0].tail.blocks[0].parameters()
    )


@pytest.mark.parametrize(("norm", "local"), [("none", True), ("group", False), ("instance", False)])
def test_without_norms_a_voxel_does_not_depend_on_far_away_voxels(norm, local):
    model = shaken(translator(norm=norm))
    critic = shaken(Critic(tiny_config()))
    x = patches(1, 1, 96, 96)
    altered = x.clone()
    altered[..., :8, :8] *= -1
    where = places(1)
    with torch.no_grad():
        difference = model.translate(1, x, where)[0] - model.translate(1, altered, where)[0]
        scores = [critic.scores(1, patch, where)[0] for patch in (x, altered)]
    assert difference[..., :8, :8].abs().max() > 1e-3
    far = difference[..., 48:, 48:].abs().max()
    assert far < 1e-6 if local else far > 1e-4
    assert torch.equal(scores[0][..., 12:, 12:], scores[1][..., 12:, 12:])


def test_an_unknown_norm_is_refused():
    with pytest.raises(KeyError, match="batch"):
        norm_layer("batch", 8)


INSIDE = slice(24, -24)  # beyond the reach of the patch's border


def inside_difference(model: Translator, where: Where, crop_where: Where, shift: int) -> float:
    """Between the translation of a crop and the crop of the translation, away from the borders."""
    x = patches(1, 1, 96, 96)
    whole, _ = model.translate(1, x, where)
    cropped = (..., *[slice(shift, shift + 90)] * 2)
    crop, _ = model.translate(1, x[cropped], crop_where)
    return float((whole[cropped] - crop)[..., INSIDE, INSIDE].abs().max())


@torch.no_grad()
def test_without_place_translation_follows_shifts_by_the_stride():
    model = shaken(translator(position=False))
    where = places(1)
    assert inside_difference(model, where, where, shift=6) < 1e-5
    assert inside_difference(model, where, where, shift=5) > 1e-3


@torch.no_grad()
def test_with_place_a_crop_is_translated_as_in_the_whole_if_it_says_where_it_lies():
    model = shaken(translator(position=True))
    where = places(1)
    moved = Where(where.start_mm + 6 * torch.tensor([0.0, 2.0, 2.0]), SPACING_MM)
    assert inside_difference(model, where, moved, shift=6) < 1e-5
    assert inside_difference(model, where, where, shift=6) > 1e-3


@torch.no_grad()
def test_discriminators_judge_a_place_only_if_told_to():
    x, here, there = patches(1, 1, 16, 16), places(1, 0), places(1, 1)
    for told in (True, False):
        critic = shaken(Critic(tiny_config(model={"position": told})))
        same = torch.equal(critic.scores(1, x, here)[0], critic.scores(1, x, there)[0])
        assert same is not told


def test_unit_posterior_has_variance_one_and_a_learned_one_its_own():
    x, where = patches(2, 1, 16, 16), places(2)
    unit = shaken(translator(posterior="unit")).encode(1, x, where)
    assert torch.equal(unit.log_var, torch.zeros_like(unit.mean))
    learned = shaken(translator(posterior="learned")).encode(1, x, where)
    assert learned.log_var.std() > 0


def test_samples_have_the_posteriors_mean_and_variance():
    q = Posterior(torch.tensor([[1.0, -2.0]]), torch.log(torch.tensor([[0.25, 4.0]])))
    torch.manual_seed(0)
    z = q.sample(torch.randn(50_000, 2))
    torch.testing.assert_close(z.mean(dim=0), q.mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(z.var(dim=0), torch.tensor([0.25, 4.0]), rtol=0.05, atol=0)


def test_the_other_domain_of_one_is_two():
    assert (other(1), other(2)) == (2, 1)


STACKS = {"pmg": {}, "unit": {"architecture": "unit", "latent_channels": 8, "norm": "instance"}}
STACKS["unit"] |= {"posterior": "unit", "skip": False, "position": False}


@pytest.mark.parametrize("architecture", STACKS)
def test_stacks_of_slices_go_in_and_come_out_as_channels(architecture):
    config = tiny_config(data={"slices": 3}, model=STACKS[architecture])
    model, critic = shaken(Translator(config)), shaken(Critic(config))
    x, where = patches(2, 3, 16, 16), places(2)
    translated, _ = model.translate(1, x, where)
    assert translated.shape == x.shape
    for n in range(3):  # every slice matters to the middle one and to the scores
        altered = x.clone()
        altered[:, n] *= -1
        assert (model.translate(1, altered, where)[0] - translated)[:, 1].abs().max() > 1e-4
        assert not torch.equal(critic.scores(1, altered, where)[0], critic.scores(1, x, where)[0])


def test_a_fresh_model_of_stacks_translates_to_the_identity():
    config = tiny_config(data={"slices": 3}, model={"latent_channels": 12})
    x = patches(2, 3, 16, 16)
    translated, _ = Translator(config).translate(2, x, places(2))
    assert (translated - x).abs().max() < 1e-5


def rough(image: torch.Tensor, lowest: float) -> float:
    """Share of the energy of a windowed image above `lowest` cycles a voxel along an axis."""
    image = (image - image.mean())[0, 0]
    fade = torch.hann_window(image.shape[0])
    spectrum = torch.fft.fft2(image * fade[:, None] * fade).abs().square()
    frequency = torch.fft.fftfreq(image.shape[0]).abs() > lowest
    high = frequency[:, None] | frequency
    return float(spectrum[high].sum() / spectrum.sum())


def without_skip(seed: int) -> Translator:
    return translator(seed, downsamplings=2, width=8, skip=False, position=False)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_up_sampling_makes_no_pattern_of_an_even_latent_as_a_strided_transpose_does(seed):
    even = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(seed))
    even = even.expand(-1, -1, 24, 24)
    image = without_skip(seed).decode(1, even, places(1))[..., 24:-24, 24:-24]
    assert image.std() < 1e-5 * image.abs().max()
    transpose = nn.ConvTranspose2d(4, 1, 3, stride=2, padding=1, output_padding=1)
    assert rough(transpose(even)[..., 8:-8, 8:-8], 0.375) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_up_sampling_leaves_no_trace_of_the_latents_grid_in_a_smooth_image(seed, monkeypatch):
    frequency = torch.fft.fftfreq(64)
    low = torch.exp(-80 * (frequency[:, None] ** 2 + frequency**2))
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(seed))
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) * low).real
    smooth /= smooth.std()
    model, where = without_skip(seed), places(1)
    inside = (..., slice(32, -32), slice(32, -32))
    assert rough(model.decode(1, smooth, where)[inside], 0.375) < 1e-5
    monkeypatch.setitem(_LINEAR, 4, "nearest")  # what it is measured against
    assert rough(model.decode(1, smooth, where)[inside], 0.375) > 5e-4
