"""How far a network sees: the width along a tile's border that what lies beyond would change."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pmg.model import Domain, Translator
from pmg.where import Where

__all__ = ["reach"]

_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d}
_TRANSPOSED = {
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
}  # fmt: skip
_POOLS = {F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}


def reach(model: Translator, source: Domain, dims: int) -> int:
    """Voxels along a tile's border whose translation depends on what lies beyond the border.

    A voxel at least that far inside of a tile, which starts at a multiple of the model's stride,
    is translated as if the tile were the whole volume. Counted operation by operation on a copy of
    the model without data, so that it holds for whatever networks the model has. The statistics
    that group and instance norm take over the tile come on top.
    """
    empty = copy.deepcopy(model).to("meta", torch.float32)
    x = torch.zeros(1, model.slices, *[16 * model.stride] * dims, device="meta")
    where = Where(torch.zeros(1, 3, device="meta"), (1.0, 1.0, 1.0))
    with torch.no_grad(), _Tainted():
        translated, _ = empty.translate(source, x, where)
    return _taint_of([translated])


class _Tainted(TorchFunctionMode):
    """Notes on every tensor how many voxels from its border what lies beyond has changed.

    An operation that is not named here works voxel by voxel: its output is tainted as its inputs.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            taint = _taint_of([*args, *kwargs.values()])
            if func in _CONVOLUTIONS:
                taint = _convolved(taint, **_named(args, kwargs, _CONVOLUTION))
            elif func in _TRANSPOSED:
                taint = _transposed(taint, **_named(args, kwargs, _TRANSPOSED_CONVOLUTION))
            elif func in _POOLS:
                taint = _convolved(taint, **_named(args, kwargs, _POOL))
            elif func is F.interpolate:
                taint = _interpolated(taint, args[0], result, kwargs.get("mode", "nearest"))
            elif func in (F.pad, torch.nn.functional.pad):
                taint += max(args[1] if len(args) > 1 else kwargs["pad"])
            result._pmg_taint = taint  # type: ignore[attr-defined]
        return result


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "output_padding")
_POOL = ("input", "kernel_size", "stride", "padding")


def _named(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, Any]:
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _taint_of(values: Iterable[Any]) -> int:
    """Of tensors, and of the tensors in sequences: torch.cat takes a list."""
    most = 0
    for value in values:
        if isinstance(value, Tensor):
            most = max(most, getattr(value, "_pmg_taint", 0))
        elif isinstance(value, list | tuple):
            most = max(most, _taint_of(value))
    return most


def _convolved(
    taint: int,
    *,
    stride: Any = 1,
    padding: Any = 0,
    kernel_size: Any = None,
    **_: Any,
) -> int:
    """Output i reads from input i * stride - padding on: tainted if that is below the taint."""
    step = _largest(stride if stride not in (None, ()) else kernel_size)
    return math.ceil((taint + _largest(padding)) / step)


def _transposed(
    taint: int,
    *,
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    **_: Any,
) -> int:
    """Input i writes to outputs i * stride - padding + (0 ... kernel - 1).

    With output_padding the far border lies that much further out.
    """
    written = (taint - 1) * _largest(stride) + max(weight.shape[2:])
    return max(0, written - _largest(padding) + _largest(output_padding))


def _interpolated(taint: int, before: Tensor, after: Tensor, mode: str) -> int:
    """Nearest copies a voxel; linear mixes it with its neighbour on either side."""
    factor = after.shape[-1] / before.shape[-1]
    if mode in ("nearest", "nearest-exact"):
        return math.ceil(taint * factor)
    return math.ceil((taint + 0.5) * factor - 0.5)


def _largest(value: Any) -> int:
    return max(value) if isinstance(value, list | tuple) else int(value)
