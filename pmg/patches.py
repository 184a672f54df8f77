"""From a stream's batch of HU patches to the tensors of a training step."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pmg.model import Domain
from pmg.step import Pair
from pmg.where import Where
from pmg.window import window_of

if TYPE_CHECKING:
    from pmg.config import Config

__all__ = ["PatchBatch", "on_device", "to_pair"]


class PatchBatch(Protocol):
    """What a stream yields; `storage.stream.Batch` is one.

    hu1, hu2: [B, d, h, w] int16 HU, arrays that torch.as_tensor takes; d = 1 for 2D patches, and
    data.slices for 2.5D.
    position_mm: [B, 2, 3] float32, frame coordinates (z, y, x) of the first voxel per domain.
    samples: [B] int64, the run's global numbers of these samples.
    volume_ids: [B] pairs of names, the volumes of domain 1 and 2 that each sample is of.
    spacing_mm: (z, y, x).
    """

    @property
    def hu1(self) -> Any: ...
    @property
    def hu2(self) -> Any: ...
    @property
    def position_mm(self) -> Any: ...
    @property
    def samples(self) -> Any: ...
    @property
    def volume_ids(self) -> Sequence[tuple[str, str]]: ...
    @property
    def spacing_mm(self) -> tuple[float, float, float]: ...


def on_device(
    batches: Iterator[PatchBatch], device: torch.device
) -> Generator[PatchBatch, None, None]:
    """The batches as tensors on the device, each sent there while the one before it is in use.

    A thread takes the next batch, and on a GPU copies it to pinned memory and from there to the
    device on a stream of its own, beside the step's kernels. Closing this iterator ends the thread;
    the batches' own iterator has to stay open until then.
    """
    side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    with ThreadPoolExecutor(1, thread_name_prefix="to device") as thread:
        ahead = thread.submit(_send, batches, device, side)
        while (sent := ahead.result()) is not None:
            ahead = thread.submit(_send, batches, device, side)
            if sent.arrived is not None:
                current = torch.cuda.current_stream(device)
                current.wait_event(sent.arrived)
                for tensor in (sent.hu1, sent.hu2, sent.position_mm):
                    tensor.record_stream(current)  # its memory is the other stream's
            yield sent


@dataclass(frozen=True)
class _Sent:
    """A `PatchBatch` of tensors on the device. arrived: when they are there, for a GPU."""

    hu1: Tensor
    hu2: Tensor
    position_mm: Tensor
    samples: Any
    volume_ids: Sequence[tuple[str, str]]
    spacing_mm: tuple[float, float, float]
    arrived: torch.cuda.Event | None


def _send(
    batches: Iterator[PatchBatch], device: torch.device, side: torch.cuda.Stream | None
) -> _Sent | None:
    batch = next(batches, None)
    if batch is None:
        return None
    tensors = [torch.as_tensor(part) for part in (batch.hu1, batch.hu2, batch.position_mm)]
    arrived = None
    if side is not None:
        with torch.cuda.stream(side):
            tensors = [part.pin_memory().to(device, non_blocking=True) for part in tensors]
            arrived = side.record_event()
    hu1, hu2, position_mm = tensors
    volumes, spacing = batch.volume_ids, batch.spacing_mm
    return _Sent(hu1, hu2, position_mm, batch.samples, volumes, spacing, arrived)


def to_pair(batch: PatchBatch, config: Config, device: torch.device) -> Pair:
    """Intensities, places and noise on the device; HU cross to it as int16 and are mapped there."""
    window = window_of(config.data)
    dims = len(config.data.patch)
    position = torch.as_tensor(batch.position_mm).to(device, non_blocking=True)
    x, where = {}, {}
    hu: dict[Domain, Any] = {1: batch.hu1, 2: batch.hu2}
    for index, (domain, values) in enumerate(hu.items()):
        patch = window.to_unit(torch.as_tensor(values).to(device, non_blocking=True))
        # The slices of a 2D or 2.5D patch [B, d, h, w] are its channels.
        x[domain] = patch if dims == 2 else patch.unsqueeze(1)
        first = Where(position[:, index], batch.spacing_mm)
        where[domain] = first.middle(config.data.slices)
    stride = 2**config.model.downsamplings
    latent = [config.model.latent_channels, *(n // stride for n in config.data.patch)]
    noise = [_noise(config.train.seed, int(n), latent) for n in batch.samples]
    return Pair(x, where, torch.stack(noise, dim=1).to(device, non_blocking=True))


def _noise(seed: int, sample: int, latent: list[int]) -> torch.Tensor:
    """Noise of one sample, a function of (seed, sample) alone: the same at every world size.

    Not by torch's generator, which looks at 32 bits of its seed on CPUs: too few for both numbers.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, sample]))
    return torch.from_numpy(generator.standard_normal((4, *latent), dtype=np.float32))
