"""The section `discriminator`: D1 and D2."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pmg.config.section import Count, Section

__all__ = ["DiscriminatorConfig"]


class DiscriminatorConfig(Section):
    """The multi-scale discriminators D1, D2."""

    width: Count = Field(64, description="channels of the first layer")
    layers: Annotated[int, Field(ge=1, le=6)] = Field(4, description="stride-2 layers per scale")
    scales: Annotated[int, Field(ge=1, le=4)] = Field(3, description="resolutions looked at")
    spectral_norm: bool = Field(
        False, description="divide every layer's weights by their largest singular value"
    )
