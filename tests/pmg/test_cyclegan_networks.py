"""The CycleGAN baseline, against its published description layer by layer and term by term."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import patches, places, shaken, stream_batch, tiny_config
from torch import Tensor, nn

from pmg.config import Config, ConfigError, load_config
from pmg.cyclegan_networks import EncoderTail
from pmg.engine import learning_rate_factor
from pmg.model import Critic, Translator
from pmg.networks import certain
from pmg.patches import to_pair
from pmg.reach import reach
from pmg.step import discriminator_loss, generator_loss
from pmg.training import Training, build_modules, torch_engines
from pmg.window import window_of

# padding mode, kernel, stride, padding, inputs, outputs
STEM = [("reflect", 7, 1, 3, 1, 64), "instance", "relu"]
HALVINGS = [
    ("zeros", 3, 2, 1, 64, 128), "instance", "relu",
    ("zeros", 3, 2, 1, 128, 256), "instance", "relu",
]  # fmt: skip
RESIDUAL = [
    ("reflect", 3, 1, 1, 256, 256), "instance", "relu",
    ("reflect", 3, 1, 1, 256, 256), "instance",
]  # fmt: skip
DOUBLINGS = [
    ("transposed", 3, 2, 1, 256, 128), "instance", "relu",
    ("transposed", 3, 2, 1, 128, 64), "instance", "relu",
]  # fmt: skip
OUT = [("reflect", 7, 1, 3, 64, 1), "tanh"]
SCORES = [
    ("zeros", 4, 2, 1, 1, 64), "leaky",
    ("zeros", 4, 2, 1, 64, 128), "instance", "leaky",
    ("zeros", 4, 2, 1, 128, 256), "instance", "leaky",
    ("zeros", 4, 1, 1, 256, 512), "instance", "leaky",
    ("zeros", 4, 1, 1, 512, 1),
]  # fmt: skip


def described(*modules: nn.Module) -> list:
    """The layers in the order in which they are built, which is that of the forward pass."""
    layers: list = []
    for layer in (m for module in modules for m in module.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            transposed = isinstance(layer, nn.ConvTranspose2d)
            mode = "transposed" if transposed else layer.padding_mode
            shape = (layer.kernel_size[0], layer.stride[0], layer.padding[0])
            layers.append((mode, *shape, layer.in_channels, layer.out_channels))
        elif isinstance(layer, nn.InstanceNorm2d):
            assert not layer.affine
            layers.append("instance")
        elif isinstance(layer, nn.LeakyReLU):
            assert layer.negative_slope == 0.2
            layers.append("leaky")
        else:
            layers += [name for kind, name in _ACTIVATIONS.items() if isinstance(layer, kind)]
    return layers


_ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh"}


@pytest.fixture(scope="module")
def published() -> tuple[Translator, Critic]:
    with torch.device("meta"):
        return Translator(load_config("cyclegan")), Critic(load_config("cyclegan"))


def test_either_mapping_has_the_published_layers(published):
    model, _ = published
    for encoder, generator in zip(model.encoders, reversed(model.generators), strict=True):
        mapping = described(encoder.down, encoder.blocks, generator.blocks, generator.up)
        assert mapping == STEM + HALVINGS + 6 * RESIDUAL + DOUBLINGS + OUT
        assert not list(encoder.tail.parameters())
        assert not list(generator.head.parameters())


def test_a_score_sees_70_voxels_by_the_published_layers(published):
    for discriminator in published[1].discriminators:
        (scale,) = discriminator.scales
        assert described(scale) == SCORES
    seen, stride = 1, 1
    for _, kernel, step, *_ in (layer for layer in SCORES if isinstance(layer, tuple)):
        seen, stride = seen + (kernel - 1) * stride, stride * step
    assert seen == 70


def test_settings_are_the_published_ones():
    config = load_config("cyclegan")
    optim, loss = config.optim, config.loss
    assert (optim.lr, optim.lr_discriminator, optim.weight_decay) == (2e-4, 2e-4, 0)
    assert (optim.beta1, optim.beta2, optim.clip, optim.ema) == (0.5, 0.999, 0, 0)
    assert (loss.adversarial, loss.likelihood) == ("lsgan", "laplace")
    assert (loss.lambda_gan, loss.lambda_cycle, loss.lambda_identity) == (1, 10, 5)
    unused = (loss.lambda_kl, loss.lambda_cycle_kl, loss.lambda_reconstruction)
    own = (loss.lambda_change, loss.lambda_gradient, loss.r1, loss.calcium_weight)
    assert (unused, own) == ((0, 0, 0), (0, 0, 0, 1))
    factors = [learning_rate_factor(step, 200, optim) for step in (0, 99, 100, 150, 200)]
    assert factors == [1, 1, 1, 0.5, 0]


def small(dims: int = 2, **sections) -> Config:
    """The architecture, 4 channels wide, with the preset's losses."""
    preset = load_config("cyclegan").model_dump()
    model = preset["model"] | {"width": 4, "downsamplings": 1, "blocks": 1, "latent_channels": 8}
    return tiny_config(
        data={"patch": (32,) * dims},
        translate={"tile": (32,) * dims},
        model=model,
        discriminator={"width": 4, "layers": 2, "scales": 1},
        loss=preset["loss"] | sections.get("loss", {}),
    )


def normalised(h: Tensor) -> Tensor:
    mean, var = h.mean((2, 3), keepdim=True), h.var((2, 3), correction=0, keepdim=True)
    return (h - mean) / torch.sqrt(var + 1e-5)


def convolved(h: Tensor, layer: nn.Module, padding: int) -> Tensor:
    padded = F.pad(h, (padding,) * 4, mode="reflect")
    return F.conv2d(padded, layer.weight, layer.bias)


@torch.no_grad()
def test_a_patch_goes_through_norms_activations_and_sums_in_the_published_order():
    model = shaken(Translator(small()))
    encoder, generator = model.encoders[0], model.generators[1]
    x = patches(2, 1, 32, 32)

    def residual(h: Tensor, block: nn.Module) -> Tensor:
        first, second = (m for m in block.modules() if isinstance(m, nn.Conv2d))
        inner = F.relu(normalised(convolved(h, first, 1)))
        return h + normalised(convolved(inner, second, 1))

    stem, halving = (m for m in encoder.down if isinstance(m, nn.Conv2d))
    h = F.relu(normalised(convolved(x, stem, 3)))
    h = F.relu(normalised(F.conv2d(h, halving.weight, halving.bias, stride=2, padding=1)))
    for block in [*encoder.blocks, *generator.blocks]:
        h = residual(h, block)
    doubling, out = generator.up[0], generator.up[-2]
    doubled = F.conv_transpose2d(
        h, doubling.weight, doubling.bias, stride=2, padding=1, output_padding=1
    )
    expected = torch.tanh(convolved(F.relu(normalised(doubled)), out, 3))
    translated, _ = model.translate(1, x, places(2))
    torch.testing.assert_close(translated, expected, atol=1e-5, rtol=1e-4)


def test_the_objective_is_least_squares_cycle_and_identity_and_nothing_else():
    config = small()
    model, critic = shaken(Translator(config)), shaken(Critic(config))
    pair = to_pair(stream_batch(config), config, torch.device("cpu"))

    def mapped(source: int, x: Tensor) -> Tensor:
        return model.translate(source, x, pair.where[source])[0]

    expected, judged = torch.zeros(()), torch.zeros(())
    for i, j in ((1, 2), (2, 1)):
        x = pair.x[i]
        there = mapped(i, x)
        (score,) = critic.scores(j, there, pair.where[i])
        (real,) = critic.scores(j, pair.x[j], pair.where[j])
        expected = expected + (score - 1).square().mean()
        expected = expected + 10 * (mapped(j, there) - x).abs().mean()
        expected = expected + 5 * (mapped(j, x) - x).abs().mean()
        judged = judged + (real - 1).square().mean() + score.square().mean()
    forward = generator_loss(model, critic, pair, config.loss, window_of(config.data), 1.0)
    torch.testing.assert_close(forward.loss, expected, atol=1e-5, rtol=1e-5)
    assert {name.rstrip("12") for name in forward.terms} == {
        "identity", "cycle1.reconstruction", "cycle2.reconstruction", "gan1.generator",
        "gan2.generator",
    }  # fmt: skip
    loss, _ = discriminator_loss(critic, pair, forward.translated, config.loss, step=0)
    torch.testing.assert_close(loss, judged, atol=1e-5, rtol=1e-5)


def test_noise_of_the_sample_does_not_reach_the_translation():
    config = small()
    model, critic = shaken(Translator(config)), Critic(config)
    pair = to_pair(stream_batch(config), config, torch.device("cpu"))
    quiet = type(pair)(pair.x, pair.where, torch.zeros_like(pair.noise))
    window = window_of(config.data)
    one, other = (generator_loss(model, critic, p, config.loss, window, 1.0) for p in (pair, quiet))
    assert torch.equal(one.loss, other.loss)


def test_weights_start_as_published():
    torch.manual_seed(0)
    config = small()
    for module in (Translator(config), Critic(config)):
        layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        weights = torch.cat([m.weight.flatten() for m in layers])
        assert weights.std().item() == pytest.approx(0.02, rel=0.1)
        assert all(m.bias.abs().max() == 0 for m in layers)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_program_trains_it_in_2d_and_3d(dims):
    config = small(dims)
    modules = build_modules(config)
    training = Training(config, *torch_engines(*modules, config), device=torch.device("cpu"))
    terms = [training.advance(stream_batch(config, 2 * step)).terms for step in range(2)]
    assert all(torch.isfinite(value) for one in terms for value in one.values())
    assert terms[1]["total"] < terms[0]["total"]


@torch.no_grad()
def test_tiles_know_how_far_it_sees():
    model = shaken(Translator(small()), scale=0.1).double()
    for layer in model.modules():
        if isinstance(layer, nn.Sequential):  # norms' statistics see the whole tile
            for name, part in layer.named_children():
                if isinstance(part, nn.InstanceNorm2d):
                    setattr(layer, name, nn.Identity())
        elif isinstance(layer, EncoderTail):
            layer.forward = certain  # which for the networks is float32
    x = patches(1, 1, 96, 96).double()
    whole = model.generators[1](model.encoders[0](x, None).mean, None)[..., 16:-16, 16:-16]
    part = model.generators[1](model.encoders[0](x[..., 16:-16, 16:-16], None).mean, None)
    rows, columns = ((whole - part).abs() > 1e-13).nonzero()[:, 2:].T
    from_border = torch.stack([rows, 63 - rows, columns, 63 - columns]).amin(dim=0)
    assert reach(Translator(small()), 1, 2) == 1 + int(from_border.max()) == 16


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.shared_blocks=1", "shared_blocks 1 must be 0 in architecture cyclegan"),
        ("model.position=true", "position True must be False"),
        ("data.patch=[16, 16]", "must be at least 24"),
    ],
)
def test_what_it_does_not_have_is_refused_by_name(override, named):
    with pytest.raises(ConfigError, match=named):
        load_config("cyclegan", [override])
