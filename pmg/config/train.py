"""The section `train`: how long a run is, in what precision, and what it keeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pmg.config.section import Address, Count, Section

__all__ = ["TrainConfig"]


class TrainConfig(Section):
    """Length, batch and records of a run."""

    steps: Count = 100_000
    batch: Count = Field(16, description="patch pairs per step over all workers")
    accumulate: Count = Field(
        1, description="micro-batches of a worker's share of a step, one after the other"
    )
    precision: Literal["float32", "bf16", "fp16"] = Field(
        "float32",
        description="of convolutions; weights, optimiser and prior are float32; fp16 scales losses",
    )
    compile: bool = Field(
        False,
        description="the networks by torch.compile, D only without loss.r1; needs a C++ compiler; "
        "for GPUs: on two CPU cores it took three minutes to start and made no step faster",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    log_every: Count = 10
    checkpoint_every: Count = 500
    keep: Count = Field(2, description="newest checkpoints kept")
    keep_best: str | None = Field(
        None,
        description="a logged term, such as total: the checkpoint where it is least is kept too",
    )
    checkpoints: Address | None = Field(
        None,
        description="where checkpoints lie: a folder or s3://bucket/prefix that no other run uses; "
        "none: in the run's folder",
    )
    max_skipped: Count = Field(
        10, description="steps in a row without a finite loss after which the run ends"
    )

    @model_validator(mode="after")
    def _saves_where_it_logs(self) -> TrainConfig:
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every {self.checkpoint_every} must be a multiple of "
                f"log_every {self.log_every}"
            )
        return self
