"""Bytes that collectives send, counted where torch hands them to gloo or NCCL."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Traffic"]


class Traffic(TorchDispatchMode):
    """Within it, `sent` counts the bytes that a rank of a ring sends, by collective.

    Of N ranks, an all-reduce of M bytes sends 2 M (N - 1) / N, an all-gather or reduce-scatter
    whose whole has M bytes half as much (Thakur, Rabenseifner and Gropp 2005), a broadcast or a
    reduction to one rank at most M. Only the calls of this thread are seen, which on CPUs are all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._opname.rstrip("_").strip("_")
            share = (dist.get_world_size() - 1) / dist.get_world_size()
            factor = {
                "allreduce": 2 * share,
                "allgather": share,
                "allgather_base": share,
                "allgather_into_tensor_coalesced": share,
                "reduce_scatter": share,
                "reduce_scatter_base": share,
                "reduce_scatter_tensor_coalesced": share,
                "broadcast": 1.0,
                "reduce": 1.0,
            }
            if name in factor:
                # The whole is the larger of what goes in and what comes out.
                self.sent[name] += factor[name] * max(map(_bytes, args[:2]))
                self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    return 0
