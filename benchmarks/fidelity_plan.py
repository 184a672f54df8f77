"""What `benchmarks.fidelity` compares: contenders, their settings, and the budget they share.

Every contender takes the same number of steps, and in each the same number of voxels of either
domain, from the same stream. Losses, networks and optimisers are those of the presets, which are
the published ones for UNIT and CycleGAN; what the size of the benchmark changes stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pmg.config import Config, load_config

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
# Every volume of the cohort has at least 176 x 176 voxels in a slice: 4 patches of 88 x 88.
_PATCHES = ("data.patch=[88, 88]",)

_SMALL_STEP = (*_PATCHES, "train.batch=4")
_SMALL_MODEL = ("model.width=12", "model.blocks=2", "discriminator.width=24")
_SMALL_PMG = (
    *_SMALL_MODEL,
    "optim.ema=0.99",
    "prior.fit_step=100",
    "prior.reseed_every=250",
    "loss.kl_warmup_steps=100",
)
_LARGE_STEP = (*_PATCHES, "train.batch=32")

SIZES = {
    "small": Size(
        name="small",
        subjects=12,
        tests=6,
        contenders=(
            *_BASELINES,
            Contender(
                "whole-slice",
                "pmg, whole slices",
                "recommended",
                ("data.patch=[176, 176]", "train.batch=1"),
            ),
            *_mixtures(1, 4, 8),
        ),
        networks={
            "unit": (
                *_SMALL_MODEL,
                "model.latent_channels=48",
                "discriminator.layers=3",
                "discriminator.scales=2",
            ),
            "cyclegan": (*_SMALL_MODEL, "model.latent_channels=48"),
            "recommended": _SMALL_PMG,
        },
        all_models=(
            *_SMALL_STEP,
            "train.steps=1000",
            "launch.workers=1",
            "launch.gpus_per_worker=0",
            "data.scale_hu=60",
            "optim.lr=1e-3",
            "optim.lr_discriminator=2e-3",
            "optim.schedule=cosine",
        ),
        minutes="100 minutes on two cores",
    ),
    "full": Size(
        name="full",
        subjects=40,
        tests=12,
        contenders=(
            *_BASELINES,
            Contender(
                "whole-slice",
                "pmg, whole slices",
                "recommended",
                ("data.patch=[176, 176]", "train.batch=8"),
            ),
            *_mixtures(1, 2, 4, 8, 16),
            Contender(
                "pmg-3d",
                "pmg, 3D",
                "recommended",
                (
                    "data.patch=[16, 88, 88]",
                    "train.batch=2",
                    "translate.tile=[32, 192, 192]",
                    "model.width=32",
                    "model.latent_channels=64",  # a block of 4 x 4 x 4
                ),
            ),
        ),
        networks={"unit": (), "cyclegan": (), "recommended": ()},
        all_models=(*_LARGE_STEP, "train.steps=20000", "launch.workers=1", "data.scale_hu=60"),
        minutes="for a GPU",
    ),
}
