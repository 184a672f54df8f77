"""The baseline's networks, against UNIT's published description layer by layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import patches, places, shaken, tiny_config
from torch import Tensor, nn

from pmg.config import Config, load_config
from pmg.model import Critic, Translator

# kernel, stride, padding, inputs, outputs
STEM = [("reflect", 7, 1, 3, 1, 64), "instance", "relu"]
HALVINGS = [
    ("reflect", 4, 2, 1, 64, 128), "instance", "relu",
    ("reflect", 4, 2, 1, 128, 256), "instance", "relu",
]  # fmt: skip
RESIDUAL = [
    ("reflect", 3, 1, 1, 256, 256), "instance", "relu",
    ("reflect", 3, 1, 1, 256, 256), "instance",
]  # fmt: skip
DOUBLINGS = [
    "double", ("reflect", 5, 1, 2, 256, 128), "layer", "relu",
    "double", ("reflect", 5, 1, 2, 128, 64), "layer", "relu",
]  # fmt: skip
OUT = [("reflect", 7, 1, 3, 64, 1), "tanh"]
SCALE = [
    ("reflect", 4, 2, 1, 1, 64), "leaky",
    ("reflect", 4, 2, 1, 64, 128), "leaky",
    ("reflect", 4, 2, 1, 128, 256), "leaky",
    ("reflect", 4, 2, 1, 256, 512), "leaky",
    ("reflect", 1, 1, 0, 512, 1),
]  # fmt: skip


def described(*modules: nn.Module) -> list:
    """The layers in the order in which they are built, which is that of the forward pass."""
    layers: list = []
    for layer in (m for module in modules for m in module.modules()):
        if isinstance(layer, nn.Conv2d):
            shape = (layer.kernel_size[0], layer.stride[0], layer.padding[0])
            layers.append((layer.padding_mode, *shape, layer.in_channels, layer.out_channels))
        elif isinstance(layer, nn.InstanceNorm2d):
            assert not layer.affine
            layers.append("instance")
        elif isinstance(layer, nn.GroupNorm):
            assert layer.num_groups == 1
            layers.append("layer")
        elif isinstance(layer, nn.LeakyReLU):
            assert layer.negative_slope == 0.2
            layers.append("leaky")
        else:
            names = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Upsample: "double"}
            layers += [name for kind, name in names.items() if isinstance(layer, kind)]
    return layers


@pytest.fixture(scope="module")
def published() -> tuple[Translator, Critic]:
    with torch.device("meta"):
        return Translator(load_config("unit")), Critic(load_config("unit"))


def test_encoders_are_those_of_the_published_code(published):
    for encoder in published[0].encoders:
        expected = STEM + HALVINGS + 4 * RESIDUAL
        assert described(encoder.down, encoder.blocks, encoder.tail) == expected


def test_generators_are_those_of_the_published_code(published):
    for generator in published[0].generators:
        expected = 4 * RESIDUAL + DOUBLINGS + OUT
        assert described(generator.head, generator.blocks, generator.up) == expected
        doublings = [m for m in generator.up if isinstance(m, nn.Upsample)]
        assert {(m.scale_factor, m.mode) for m in doublings} == {(2, "nearest")}


def test_discriminators_are_those_of_the_published_code(published):
    for discriminator in published[1].discriminators:
        assert [described(scale) for scale in discriminator.scales] == 3 * [SCALE]


def test_settings_are_those_of_the_published_code():
    config = load_config("unit")
    optim, loss = config.optim, config.loss
    assert (optim.lr, optim.lr_discriminator, optim.weight_decay) == (1e-4, 1e-4, 1e-4)
    assert (optim.beta1, optim.beta2) == (0.5, 0.999)
    assert (optim.schedule, optim.halve_every, optim.clip, optim.ema) == ("halve", 100_000, 0, 0)
    assert (loss.lambda_gan, loss.lambda_kl, loss.lambda_reconstruction) == (1, 0.01, 10)
    assert (loss.lambda_cycle_kl, loss.lambda_cycle, loss.cycle_kl_weight) == (0.01, 10, "lambda3")
    assert (loss.adversarial, loss.likelihood, loss.free_bits) == ("lsgan", "laplace", 0)
    assert (loss.lambda_change, loss.lambda_gradient, loss.r1, loss.calcium_weight) == (0, 0, 0, 1)
    assert loss.kl_warmup_steps == 0
    assert not config.discriminator.spectral_norm
    assert (config.prior.components, config.prior.learned) == (1, False)
    assert (config.train.batch, config.train.steps) == (1, 1_000_000)


def small(dims: int = 2, **model) -> Config:
    """UNIT's architecture, 4 channels wide."""
    unit = load_config("unit").model.model_dump() | {
        "width": 4, "downsamplings": 1, "blocks": 2, "latent_channels": 8
    }  # fmt: skip
    return tiny_config(
        data={"patch": (16,) * dims}, translate={"tile": (16,) * dims}, model=unit | model
    )


def normalised(h: Tensor, axes: tuple[int, ...]) -> Tensor:
    mean, var = h.mean(axes, keepdim=True), h.var(axes, correction=0, keepdim=True)
    return (h - mean) / torch.sqrt(var + 1e-5)


def convolved(h: Tensor, layer: nn.Module, padding: int) -> Tensor:
    padded = F.pad(h, (padding,) * 4, mode="reflect")
    return F.conv2d(padded, layer.weight, layer.bias, stride=layer.stride)


@torch.no_grad()
def test_a_patch_goes_through_norms_activations_and_sums_in_the_published_order():
    model, where = shaken(Translator(small())), places(2)
    encoder, generator = model.encoders[0], model.generators[1]
    x = patches(2, 1, 16, 16)

    def residual(h: Tensor, block: nn.Module) -> Tensor:
        first, second = (m for m in block.modules() if isinstance(m, nn.Conv2d))
        inner = F.relu(normalised(convolved(h, first, 1), (2, 3)))
        return h + normalised(convolved(inner, second, 1), (2, 3))

    stem, halving = (m for m in encoder.down if isinstance(m, nn.Conv2d))
    h = F.relu(normalised(convolved(x, stem, 3), (2, 3)))
    h = F.relu(normalised(convolved(h, halving, 1), (2, 3)))
    for block in [*encoder.blocks, *encoder.tail.blocks]:
        h = residual(h, block)
    posterior = model.encode(1, x, where)
    torch.testing.assert_close(posterior.mean, h, atol=1e-5, rtol=1e-4)
    assert torch.equal(posterior.log_var, torch.zeros_like(h))

    z = h
    for block in [*generator.head.blocks, *generator.blocks]:
        z = residual(z, block)
    doubling, out = (m for m in generator.up if isinstance(m, nn.Conv2d))
    (norm,) = (m for m in generator.up if isinstance(m, nn.GroupNorm))
    doubled = z.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    y = normalised(convolved(doubled, doubling, 2), (1, 2, 3))
    y = F.relu(y * norm.weight[:, None, None] + norm.bias[:, None, None])
    torch.testing.assert_close(
        model.decode(2, h, where), torch.tanh(convolved(y, out, 3)), atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_coarser_scores_are_of_patches_averaged_over_three_voxels_within_the_border():
    critic = shaken(Critic(small()))
    x = patches(1, 1, 16, 16)
    counts = F.conv2d(torch.ones_like(x), torch.ones(1, 1, 3, 3), stride=2, padding=1)
    halved = F.conv2d(x, torch.ones(1, 1, 3, 3), stride=2, padding=1) / counts
    scales = critic.discriminators[0].scales
    fine, coarse = critic.scores(1, x, places(1))
    torch.testing.assert_close(fine, scales[0](x))
    torch.testing.assert_close(coarse, scales[1](halved))


def test_weights_start_as_published():
    torch.manual_seed(0)
    settings = small(width=16, latent_channels=32)
    model, critic = Translator(settings), Critic(settings)
    weight = model.encoders[0].blocks[0].change[0].weight
    assert weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.03)
    scales = [m.weight for m in critic.modules() if isinstance(m, nn.Conv2d)]
    everything = torch.cat([w.flatten() for w in scales])
    assert everything.std().item() == pytest.approx(0.02, rel=0.1)
    biases = [p for m in (model, critic) for n, p in m.named_parameters() if n.endswith("bias")]
    assert all(b.abs().max() == 0 for b in biases)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_code_builds_it_in_2d_and_3d(dims):
    settings = small(dims)
    x, where = patches(2, 1, *(16,) * dims), places(2)
    translated, posterior = Translator(settings).translate(1, x, where)
    assert translated.shape == x.shape
    assert posterior.mean.shape == (2, 8, *(8,) * dims)
    scores = Critic(settings).scores(1, x, where)
    assert [s.shape[2:] for s in scores] == [(4,) * dims, (2,) * dims]
