"""The section `launch`: workers, their hardware, and DeepSpeed's sharding."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pmg.config.section import Count, NonNegative, Positive, Section, Weight

__all__ = ["LaunchConfig"]


class LaunchConfig(Section):
    """How many workers, with what, and how DeepSpeed shards."""

    workers: Count = Field(2, description="processes that train together; the most, if elastic")
    min_workers: Count | None = Field(
        None,
        description="elastic: go on with so few where nodes are lost, and with more as they come; "
        "none: exactly as many as workers",
    )
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: Weight = Field(0.0, description="0 trains on CPUs with gloo")
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "parameters"] = Field(
        "none",
        description="to the host's memory: optimizer from zero_stage 1, parameters (and optimizer) "
        "at 3",
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="of the workers: on few nodes or on many, if possible or strictly"
    )
    max_failures: NonNegative = Field(2, description="restarts of the worker group")
    hang_s: Annotated[float, Field(ge=1)] = Field(
        120.0, description="seconds without a step after which a worker is restarted"
    )
    address: str | None = Field(
        None, description="of a Ray cluster, such as auto; none: a local one"
    )
