"""What `benchmarks.fidelity` compares: contenders, their settings, and the budget they share.

Every contender sees the same number of voxels of either domain, from the same stream, in patches of
64 x 64; in `small` `recommended` has more and smaller ones a step, and fewer steps. Of whole slices
there are few a step, and fewer steps still. Losses and networks are those of the presets, which are
the published ones for UNIT and CycleGAN; what the size of the benchmark changes stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pmg.config import Config, load_config
from storage.phantom import Protocol

__all__ = ["SIZES", "Contender", "Size"]


@dataclass(frozen=True)
class Contender:
    """One column of the table: a preset and what is changed in it."""

    name: str
    title: str
    preset: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Size:
    """One size of the benchmark: its cohort, its budget, and how large its networks are.

    networks: overrides by preset, for all contenders of it. all_models: overrides for all of them.
    """

    name: str
    subjects: int
    tests: int
    protocol: Protocol
    contenders: tuple[Contender, ...]
    networks: dict[str, tuple[str, ...]]
    all_models: tuple[str, ...]
    minutes: str

    def config(self, contender: Contender, seed: int, extra: Sequence[str] = ()) -> Config:
        own = (*self.all_models, *self.networks[contender.preset], *contender.overrides)
        return load_config(contender.preset, [*own, f"train.seed={seed}", *extra])


def _mixtures(*components: int) -> tuple[Contender, ...]:
    return tuple(
        Contender(f"pmg-k{k}", f"pmg, K = {k}", "recommended", (f"prior.components={k}",))
        for k in components
    )


_BASELINES = (
    Contender("unit", "UNIT", "unit"),
    Contender("cyclegan", "CycleGAN", "cyclegan"),
)
# Iterative reconstruction at 3 mm. At the phantom's usual 12 to 25 HU noise alone, which the truth
# has not, would be 15 of the 26 HU of body MAE that no translation has.
_PROTOCOL = Protocol(noise_sd_hu=(8.0, 15.0))

_PATCH = 64
_WHOLE = 176  # every volume of the cohort has at least as many voxels along both axes of a slice
_SMALL_STEPS, _SMALL_BATCH = 3300, 3
_LARGE_STEPS, _LARGE_BATCH = 20_000, 32


def _of_size(patch: int, count: int, steps: int, batch: int) -> tuple[str, ...]:
    """`count` patches of this size a step, and as many voxels in all as `batch` of _PATCH."""
    share = batch * _PATCH**2 / (count * patch**2)
    return (
        f"data.patch=[{patch}, {patch}]",
        f"train.batch={count}",
        f"train.steps={round(steps * share)}",
    )


def _whole_slices(steps: int, batch: int, slices: int) -> Contender:
    return Contender(
        "whole-slice",
        "pmg, whole slices",
        "recommended",
        _of_size(_WHOLE, slices, steps, batch),
    )


# Narrow: in the same time 3300 steps gain more than 12 channels and 1800 steps of 4 patches.
_SMALL_MODEL = ("model.width=8", "model.blocks=2", "discriminator.width=24")
# More places a step: at as many voxels 3 patches of 64 x 64 come to 13.5 HU, these to 13.2.
_SMALL_PMG = (
    *_SMALL_MODEL,
    *_of_size(48, 6, _SMALL_STEPS, _SMALL_BATCH),
    "optim.lr=2e-3",
    "optim.lr_discriminator=4e-3",
    "prior.fit_step=100",
    "prior.reseed_every=250",
    "loss.kl_warmup_steps=100",
)

# At the rates of `recommended` CycleGAN came to 45 HU, not 37, and a training of UNIT's diverged.
_SMALL_BASELINE = (
    *_SMALL_MODEL,
    "model.latent_channels=32",
    "optim.lr=1e-3",
    "optim.lr_discriminator=2e-3",
)

SIZES = {
    "small": Size(
        name="small",
        subjects=12,
        tests=6,
        protocol=_PROTOCOL,
        contenders=(
            *_BASELINES,
            _whole_slices(_SMALL_STEPS, _SMALL_BATCH, 1),
            *_mixtures(1, 4, 8),
        ),
        networks={
            "unit": (*_SMALL_BASELINE, "discriminator.layers=3", "discriminator.scales=2"),
            "cyclegan": _SMALL_BASELINE,
            "recommended": _SMALL_PMG,
        },
        all_models=(
            f"data.patch=[{_PATCH}, {_PATCH}]",
            f"train.batch={_SMALL_BATCH}",
            f"train.steps={_SMALL_STEPS}",
            "launch.workers=1",
            "launch.gpus_per_worker=0",
            "data.scale_hu=150",
            "optim.schedule=cosine",
        ),
        minutes="100 minutes on two cores",
    ),
    "full": Size(
        name="full",
        subjects=40,
        tests=12,
        protocol=_PROTOCOL,
        contenders=(
            *_BASELINES,
            _whole_slices(_LARGE_STEPS, _LARGE_BATCH, 4),
            *_mixtures(1, 2, 4, 8, 16),
            Contender(
                "pmg-3d",
                "pmg, 3D",
                "recommended",
                (
                    f"data.patch=[16, {_PATCH}, {_PATCH}]",
                    f"train.batch={_LARGE_BATCH // 16}",
                    "translate.tile=[32, 192, 192]",
                    "model.width=32",
                    "model.latent_channels=64",  # a block of 4 x 4 x 4
                ),
            ),
        ),
        networks={"unit": (), "cyclegan": (), "recommended": ()},
        all_models=(
            f"data.patch=[{_PATCH}, {_PATCH}]",
            f"train.batch={_LARGE_BATCH}",
            f"train.steps={_LARGE_STEPS}",
            "launch.workers=1",
            "data.scale_hu=150",
        ),
        minutes="for a GPU",
    ),
}
