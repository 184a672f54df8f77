"""The section `model`: the networks of E and G, and the latent's shape."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pmg.config.section import Count, NonNegative, Section

__all__ = ["ModelConfig"]


class ModelConfig(Section):
    """Both VAEs: encoders E1, E2 and generators G1, G2."""

    architecture: Literal["pmg", "unit", "cyclegan"] = Field(
        "pmg", description="networks of E, G and D: of pmg.networks, or as UNIT or CycleGAN have"
    )
    width: Count = Field(64, description="channels at full resolution")
    downsamplings: Annotated[int, Field(ge=1, le=5)] = Field(
        2, description="halvings to the latent"
    )
    blocks: NonNegative = Field(4, description="residual blocks in each encoder and generator")
    shared_blocks: NonNegative = Field(
        1, description="last blocks of E1/E2 and first of G1/G2 that both domains share"
    )
    latent_channels: Count = Field(16, description="C, channels of z at every latent position")
    norm: Literal["none", "group", "instance"] = Field(
        "none", description="group and instance make a voxel depend on its tile's statistics"
    )
    posterior: Literal["learned", "unit", "none"] = Field(
        "learned",
        description="diagonal variance learned, or fixed at 1 as in UNIT's code; "
        "none: z is the mean",
    )
    skip: bool = Field(
        True, description="a fixed linear path through the latent: translation starts as identity"
    )
    position: bool = Field(
        True, description="tell the networks where in the body-centred frame a patch lies"
    )

    @model_validator(mode="after")
    def _shared_at_most_all(self) -> ModelConfig:
        if self.shared_blocks > self.blocks:
            raise ValueError(
                f"shared_blocks {self.shared_blocks} must be at most blocks {self.blocks}"
            )
        return self

    @model_validator(mode="after")
    def _baselines_are_as_published(self) -> ModelConfig:
        if self.architecture == "pmg":
            return self
        published = {
            "latent_channels": self.width * 2**self.downsamplings,  # the last block's
            "norm": "instance",
            "posterior": "unit",
            "skip": False,
            "position": False,
        }
        if self.architecture == "cyclegan":
            published |= {"posterior": "none", "shared_blocks": 0}
        for name, value in published.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} {getattr(self, name)} must be {value} "
                    f"in architecture {self.architecture}"
                )
        return self
