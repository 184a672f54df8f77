"""The section `optim`: how both sides descend."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pmg.config.section import Count, Positive, Section, Weight

__all__ = ["OptimConfig"]


class OptimConfig(Section):
    """Adam for both sides."""

    lr: Positive = Field(1e-4, description="of E, G and the prior")
    lr_discriminator: Positive = Field(1e-4, description="of D")
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    weight_decay: Weight = 1e-4
    clip: Weight = Field(0.0, description="largest norm of a module's gradient; 0: no limit")
    schedule: Literal["halve", "cosine", "linear", "constant"] = Field(
        "halve",
        description="halve: every halve_every steps; cosine: to zero at the last step; "
        "linear: the same, straight, over the second half",
    )
    halve_every: Count = 100_000
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="decay of the averaged weights that translate, less at first; 0: none"
    )
