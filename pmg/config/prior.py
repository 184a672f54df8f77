"""The section `prior`: the mixture over the latent."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pmg.config.section import NonNegative, Section

__all__ = ["PriorConfig"]


class PriorConfig(Section):
    """The mixture of Gaussians over each latent position."""

    components: Annotated[int, Field(ge=1, le=256)] = Field(4, description="K")
    learned: bool = Field(True, description="false: fixed; with components 1 this is N(0, 1)")
    min_weight: Annotated[float, Field(ge=0, lt=1)] = Field(1e-3, description="floor of pi_k")
    min_std: Annotated[float, Field(gt=0, lt=1)] = Field(0.05, description="floor of sigma_k")
    fit_step: NonNegative = Field(
        100, description="step at which the mixture is fitted to encodings by EM; 0: never"
    )
    reseed_every: NonNegative = Field(
        500, description="steps between checks for dead components, which are re-seeded; 0: never"
    )

    @model_validator(mode="after")
    def _floors_leave_some_weight(self) -> PriorConfig:
        if self.components * self.min_weight >= 1:
            raise ValueError(
                f"min_weight {self.min_weight} times components {self.components} must be below 1"
            )
        return self
