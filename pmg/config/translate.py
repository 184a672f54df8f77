"""The section `translate`: how whole volumes are cut, and what becomes of their noise."""

from __future__ import annotations

from pydantic import Field

from pmg.config.section import Count, Fraction, NonNegative, Section

__all__ = ["TranslateConfig"]


class TranslateConfig(Section):
    """Translation of whole volumes."""

    tile: tuple[Count, ...] = Field(
        (512, 512), min_length=2, max_length=3, description="voxels that one pass gives"
    )
    margin: NonNegative | None = Field(
        None,
        description="voxels around a tile that the network sees too; none: as far as it sees, "
        "whereby tiles of any size give the same",
    )
    overlap: Fraction = Field(
        0.25, description="share of a tile that is blended with its neighbour"
    )
    batch: Count = Field(4, description="tiles at once")
    denoise: bool = Field(
        False,
        description="leave the scan's noise out of the latent where the mixture tells it from "
        "structure; the paper translates it",
    )
