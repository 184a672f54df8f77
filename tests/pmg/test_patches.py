"""From the stream's HU to a step's tensors."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from tiny import SPACING_MM, stream_batch, tiny_config

from pmg.patches import on_device, to_pair

CPU = torch.device("cpu")


def pair_of(config, first_sample=0):
    return to_pair(stream_batch(config, first_sample), config, CPU)


@pytest.mark.parametrize("patch", [(16, 24), (8, 12, 16)])
def test_patches_of_2d_and_3d_become_one_channel_of_their_shape(patch):
    config = tiny_config(data={"patch": patch}, translate={"tile": patch})
    batch, pair = stream_batch(config), pair_of(config)
    half = tuple(n // 2 for n in patch)
    assert pair.noise.shape == (4, 2, 4, *half)
    window = config.data
    low, high = (np.arcsinh((hu - 50.0) / 150) for hu in (window.low_hu, window.high_hu))
    for domain, hu in ((1, batch.hu1), (2, batch.hu2)):
        assert pair.x[domain].dtype == torch.float32
        assert pair.x[domain].shape == (2, 1, *patch)
        expected = 2 * (np.arcsinh((hu - 50.0) / 150) - low) / (high - low) - 1
        np.testing.assert_allclose(pair.x[domain].numpy().ravel(), expected.ravel(), atol=1e-5)


def test_slices_of_a_stack_are_channels_that_lie_where_the_middle_one_does():
    config = tiny_config(data={"slices": 5})
    batch, pair = stream_batch(config), pair_of(config)
    assert pair.x[1].shape == (2, 5, 16, 16)
    assert pair.noise.shape == (4, 2, 4, 8, 8)
    flat = tiny_config()
    middle = dataclasses.replace(batch, hu1=batch.hu1[:, 2:3], hu2=batch.hu2[:, 2:3])
    expected = to_pair(middle, flat, CPU)
    for domain in (1, 2):
        assert torch.equal(pair.x[domain][:, 2:3], expected.x[domain])
        moved = pair.where[domain].start_mm - expected.where[domain].start_mm
        torch.testing.assert_close(moved, torch.tensor([2 * SPACING_MM[0], 0, 0]).expand(2, 3))


def test_each_domain_keeps_its_own_place():
    config = tiny_config()
    batch, pair = stream_batch(config), pair_of(config)
    for domain in (1, 2):
        place = pair.where[domain]
        np.testing.assert_array_equal(place.start_mm, batch.position_mm[:, domain - 1])
        assert place.spacing_mm == SPACING_MM


def test_batches_reach_the_device_in_their_order_the_next_one_ahead():
    config = tiny_config()
    taken = []

    def batches():
        for step in range(4):
            taken.append(step)
            yield stream_batch(config, first_sample=2 * step)

    ahead = threading.Event()
    with closing(on_device(batches(), CPU)) as sent:
        for step in range(4):
            batch, expected = next(sent), stream_batch(config, first_sample=2 * step)
            assert batch.samples.tolist() == expected.samples.tolist()
            assert isinstance(batch.hu1, torch.Tensor)
            pair, plain = to_pair(batch, config, CPU), to_pair(expected, config, CPU)
            for domain in (1, 2):
                assert torch.equal(pair.x[domain], plain.x[domain])
                assert torch.equal(pair.where[domain].start_mm, plain.where[domain].start_mm)
            assert torch.equal(pair.noise, plain.noise)
            while len(taken) < min(step + 2, 4):
                ahead.wait(0.01)
        assert next(sent, None) is None


def test_what_the_stream_raises_is_raised_by_the_prefetch_and_its_thread_ends():
    def batches():
        yield stream_batch(tiny_config())
        raise ValueError("volume v1: damaged")

    before = threading.active_count()
    with closing(on_device(batches(), CPU)) as sent:
        next(sent)
        with pytest.raises(ValueError, match="volume v1"):
            next(sent)
    assert threading.active_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_cpu():
    config, gpu = tiny_config(), torch.device("cuda")
    steps = [stream_batch(config, first_sample=2 * step) for step in range(6)]
    with closing(on_device(iter(steps), gpu)) as sent:
        for batch, expected in zip(sent, steps, strict=True):
            assert batch.hu1.is_cuda
            pair, plain = to_pair(batch, config, gpu), to_pair(expected, config, gpu)
            for domain in (1, 2):
                assert torch.equal(pair.x[domain], plain.x[domain])


def test_noise_of_a_sample_is_the_same_in_any_batch():
    config = tiny_config()
    torch.manual_seed(1)
    batch = stream_batch(config, first_sample=10)
    together = to_pair(batch, config, CPU).noise
    torch.manual_seed(2)
    alone = dataclasses.replace(
        batch,
        hu1=batch.hu1[1:],
        hu2=batch.hu2[1:],
        position_mm=batch.position_mm[1:],
        samples=batch.samples[1:],
    )
    assert torch.equal(to_pair(alone, config, CPU).noise, together[:, 1:])


def test_noise_is_standard_normal_and_differs_by_sample_seed_and_use():
    config = tiny_config(model={"latent_channels": 64})
    noise = pair_of(config).noise
    assert noise.mean().abs() < 0.05
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    other_seed = tiny_config(model={"latent_channels": 64}, train={"seed": 6})
    drawn = [*noise.flatten(0, 1), pair_of(config, 2).noise[0, 0], pair_of(other_seed).noise[0, 0]]
    correlation = torch.corrcoef(torch.stack([n.flatten() for n in drawn]))
    assert (correlation - torch.eye(len(drawn))).abs().max() < 0.1


def test_any_seed_that_the_configuration_takes_has_its_noise():
    drawn = [pair_of(tiny_config(train={"seed": s})).noise for s in (0, 20260801, 2**40)]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(drawn))
