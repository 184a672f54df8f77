"""The section `data`: the store, and how patches are drawn from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pmg.config.section import Address, Count, Fraction, NonNegative, Positive, Section

__all__ = ["DataConfig"]


class DataConfig(Section):
    """Which store, and how patches are drawn from it."""

    store: Address | None = Field(None, description="the store: a folder or s3://bucket/prefix")
    contrast_domain: Literal[1, 2] = Field(
        2, description="the domain with contrast agent, by which evaluation tells calcium"
    )
    patch: tuple[Count, ...] = Field(
        (64, 64), min_length=2, max_length=3, description="voxels: h, w for 2D or d, h, w for 3D"
    )
    slices: Count = Field(
        1, description="2.5D: neighbouring slices in a 2D patch, its channels; odd; 1: plain 2D"
    )
    spacing_mm: tuple[Positive, Positive, Positive] | None = Field(
        None, description="z, y, x of the store's grid; filled in by training"
    )
    pairing: Literal["unpaired", "same_patient"] = Field(
        "unpaired", description="co-located patches of different patients, or of one in two phases"
    )
    balance: Literal["volumes", "patients"] = Field(
        "volumes", description="what is drawn evenly; patients: many volumes of one weigh as one"
    )
    jitter: NonNegative = Field(0, description="voxels the second patch may be displaced by")
    body_fraction: Fraction = Field(
        1.0, description="share of the patches that are centred in both bodies"
    )
    mask_fraction: Fraction = Field(
        0.0, description="share of the patches that are centred in a masked cell, such as calcium"
    )
    pool: Count | None = Field(
        None,
        description="visits open at once over all workers, rounded up to whole batches; "
        "none: four batches",
    )
    patches_per_visit: Count = Field(
        16, description="patches taken from each part of a volume that is read; more read less"
    )
    amplification: Annotated[float, Field(ge=0.1, le=100)] = Field(
        1.3, description="voxels decoded for each one delivered; more spread a visit's patches"
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the patients that no training step sees"
    )
    validation_seed: NonNegative = Field(
        0, description="draws those patients, whatever train.seed: runs compare on the same ones"
    )
    memory_bytes: Annotated[int, Field(ge=0)] = Field(
        2 * 1024**3, description="per worker; a cohort below it is kept decoded in memory"
    )
    threads: Count = Field(2, description="threads per worker that read ahead")
    low_hu: float = Field(-1024.0, description="intensities below are clipped")
    high_hu: float = Field(3071.0, description="intensities above are clipped")
    centre_hu: float = Field(50.0, description="HU with the finest intensity resolution")
    scale_hu: Positive = Field(
        150.0, description="HU round the centre that are mapped nearly linearly"
    )

    @model_validator(mode="after")
    def _slices_have_a_middle(self) -> DataConfig:
        if self.slices % 2 == 0:
            raise ValueError(f"slices {self.slices} must be odd: the middle one is translated")
        if self.slices > 1 and len(self.patch) == 3:
            raise ValueError(f"slices {self.slices} needs a 2D patch, not {list(self.patch)}")
        return self

    @model_validator(mode="after")
    def _window_is_a_range(self) -> DataConfig:
        if self.low_hu >= self.high_hu:
            raise ValueError(f"low_hu {self.low_hu} must be below high_hu {self.high_hu}")
        return self
