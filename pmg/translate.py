"""A whole volume from one domain to the other: to the model's grid, through tiles, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmg.config import Config
from pmg.model import Domain, Translator, other
from pmg.networks import Posterior
from pmg.noise import PlaceNoise
from pmg.prior import responsibilities
from pmg.reach import reach
from pmg.shrinkage import latent_noise, shrunk
from pmg.tiles import Progress, Tiling, blended_slices, continued
from pmg.weights import load_translator, model_folder
from pmg.where import Where
from pmg.window import window_of
from storage.body import body_mask, frame_origin
from storage.grid import canonical, reorder_like, resample, resample_like, same_grid
from storage.volume import Volume

__all__ = ["GridSlice", "Translation", "VolumeTranslator", "Wanted"]

_LOW_HU = -1024
_SLICES = 64  # at a time from the model's grid to the source's
_NOISE_PAIRS, _NOISE_VOXELS = 16, 256  # places, and voxels along y and x, that tell a scan's noise


@dataclass(frozen=True)
class Wanted:
    """What a translation is to be, beside deterministic.

    samples: 0 translates the posterior's mean; n >= 2 draws n latents from the posterior: the mean
    of their translations is given, and their standard deviation as uncertainty. seed: of their
    noise. responsibilities: also how much each component of the mixture explains every place.
    """

    samples: int = 0
    seed: int = 0
    responsibilities: bool = False

    def __post_init__(self) -> None:
        if self.samples < 0 or self.samples == 1:
            raise ValueError(
                f"samples {self.samples}: expected 0, the posterior's mean, or at least 2, of "
                f"which a mean and a standard deviation can be taken"
            )


@dataclass(frozen=True)
class Translation:
    """A translated volume, and what was wanted beside it; all on the source's grid.

    volume: int16 HU. uncertainty: float32, the standard deviation of the samples in HU, 0 outside
    of the body; None without samples. responsibilities: of every component, uint8 percent, which
    add up to 100 but for rounding; empty if not wanted.
    """

    volume: Volume
    uncertainty: Volume | None = None
    responsibilities: tuple[Volume, ...] = ()


@dataclass(frozen=True)
class GridSlice:
    """One axial slice on the model's grid: [Y, X] HU of source, translation and, if known, truth.

    tissue: [Y, X], the component with the largest responsibility at the voxel's latent position.
    """

    source: NDArray[np.float32]
    translation: NDArray[np.float32]
    truth: NDArray[np.float32] | None
    tissue: NDArray[np.int64]


class VolumeTranslator:
    """A trained model, applied to whole volumes of one domain."""

    def __init__(
        self, model: Translator, config: Config, source: Domain, device: torch.device
    ) -> None:
        assert config.data.spacing_mm is not None  # filled in by training
        self._model, self._config, self._source = model, config, source
        self._spacing_mm = config.data.spacing_mm
        self._flat = len(config.translate.tile) == 2
        self._device = device
        self._window = window_of(config.data)
        self._reach = reach(model, source, len(config.translate.tile))
        plane = (self._reach, model.stride)
        self._around = ((model.slices // 2, 1) if self._flat else plane, plane, plane)

    @classmethod
    def open(cls, model: Path, source: int, device: str = "auto") -> VolumeTranslator:
        """From the folder of a run, or of its model. device: auto takes a GPU if there is one."""
        folder = model_folder(model)
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        chosen = torch.device(name)
        translator, config = load_translator(folder, chosen)
        return cls(translator, config, 1 if source == 1 else 2, chosen)

    @property
    def config(self) -> Config:
        return self._config

    @property
    def source(self) -> Domain:
        """The domain that it translates from."""
        return self._source

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of the model's grid, z, y, x."""
        return self._spacing_mm

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._device

    def reversed(self) -> VolumeTranslator:
        """The same model in the other direction."""
        return VolumeTranslator(self._model, self._config, other(self._source), self._device)

    def translate(self, volume: Volume, progress: Progress | None = None) -> Volume:
        """The volume in the other domain, on its own grid, int16 HU; by the posterior's mean.

        What the model changes is computed on the model's grid and added to the source. Detail finer
        than that grid is thereby kept as it is, and so is all that lies outside the body.
        """
        return self.predict(volume, progress=progress).volume

    def predict(
        self, volume: Volume, wanted: Wanted | None = None, progress: Progress | None = None
    ) -> Translation:
        """As `translate`, with what is `wanted` beside the translation."""
        wanted = Wanted() if wanted is None else wanted
        grid = self.on_grid(volume)
        body = body_mask(grid)
        change = Volume(np.zeros(grid.shape, np.float32), grid.affine)
        spread = _empty(grid, np.float32) if wanted.samples else None
        shares = [
            _empty(grid, np.uint8)
            for _ in range(self._model.prior.components * wanted.responsibilities)
        ]
        for z, images in self._translated_slices(grid, body, wanted, progress):
            inside = body[z]
            target, *more = images
            seen = np.clip(grid.hu[z], self._window.low_hu, self._window.high_hu)  # not of metal
            change.hu[z] = np.where(inside, target - seen.astype(np.float32), 0)
            if spread is not None:
                spread.hu[z] = np.where(inside, more.pop(0), 0)
            for share, image in zip(shares, more, strict=True):
                share.hu[z] = np.rint(100 * image)
        hu = np.empty(volume.shape, np.int16)
        for part, own in _parts_like(change, volume):
            changed = np.rint(volume.hu[part] + own)
            hu[part] = np.clip(changed, _LOW_HU, np.iinfo(np.int16).max)
        return Translation(
            Volume(hu, volume.affine),
            None if spread is None else _like(spread, volume),
            tuple(_like(share, volume) for share in shares),
        )

    def slice(self, volume: Volume, z_mm: float, truth: Volume | None = None) -> GridSlice:
        """What the model sees and makes of the axial slice at z_mm (LPS), nearest in the volume."""
        grid = self.on_grid(volume)
        z = round((z_mm - grid.affine[2, 3]) / self._spacing_mm[0])
        z = min(max(z, 0), grid.shape[0] - 1)
        stride = self._model.stride
        first, stop = self._seen_around(z, grid.shape[0])
        hu = torch.as_tensor(grid.hu[first:stop].astype(np.float32), device=self._device)
        body = body_mask(grid)
        start_mm = self._frame_start_mm(grid, body)
        noise = self._scan_noise(grid, body, start_mm)
        where = self._where(torch.tensor([[first, 0, 0]]), start_mm)
        with torch.inference_mode():
            x = self._window.to_unit(hu)[None]
            x = continued(self._stacked(x) if self._flat else x[None], stride)
            q = self._model.encode(self._source, x, where)
            latent = self._without(noise, q).mean
            translated = self._model.decode(other(self._source), latent, where)
            shares = responsibilities(q.mean, q.log_var, self._model.prior.mixture())
        target = self._window.to_hu(translated).flatten(0, -3)[z - first]
        tissue = shares.argmax(dim=1)[0]
        if not self._flat:
            tissue = tissue[(z - first) // stride]
        tissue = tissue.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
        rows, columns = (slice(n) for n in grid.shape[1:])
        return GridSlice(
            grid.hu[z].astype(np.float32),
            target[rows, columns].cpu().numpy(),
            None if truth is None else self.on_grid(truth).hu[z].astype(np.float32),
            tissue[rows, columns].cpu().numpy(),
        )

    def _seen_around(self, z: int, slices: int) -> tuple[int, int]:
        """First and last + 1 of the slices that decide slice z, from a latent slice's first on."""
        if self._flat:
            stack = min(self._model.slices, slices)
            first = min(max(z - stack // 2, 0), slices - stack)
            return first, first + stack
        stride = self._model.stride
        first = max(z - self._reach, 0) // stride * stride
        stop = -(-(z + self._reach + 1) // stride) * stride
        return first, min(stop, slices)

    def on_grid(self, volume: Volume) -> Volume:
        """The volume on the grid that the model sees."""
        return resample(canonical(volume), self._spacing_mm)

    def _frame_start_mm(self, grid: Volume, body: NDArray[np.bool_]) -> Tensor:
        """Frame coordinates of the grid's first voxel."""
        origin = frame_origin(grid, body).index
        return -torch.tensor(origin) * torch.tensor(self._spacing_mm)

    def _where(self, starts: Tensor, start_mm: Tensor) -> Where:
        position = starts * torch.tensor(self._spacing_mm) + start_mm
        first = Where(position.float().to(self._device), self._spacing_mm)
        return first.middle(self._model.slices)

    def _stacked(self, x: Tensor) -> Tensor:
        """x [B, n, h, w], its last slice repeated where a volume has fewer than the model takes."""
        missing = self._model.slices - x.shape[1]
        return torch.cat([x, x[:, -1:].expand(-1, missing, -1, -1)], dim=1) if missing else x

    def _translated_slices(
        self,
        grid: Volume,
        body: NDArray[np.bool_],
        wanted: Wanted,
        progress: Progress | None,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The index of every slice that holds body, and its images [N, Y, X].

        The translation in HU, their standard deviation if there are samples, the responsibilities
        if wanted. Only the box round the body is computed, and as far round it as the network sees;
        the images are 0 outside of it, the responsibilities too.
        """
        if not body.any():
            return
        box = _box_round(body, self._around)
        start_mm = self._frame_start_mm(grid, body)
        scan_noise = self._scan_noise(grid, body, start_mm)
        corner = torch.tensor([part.start for part in box])
        noise = PlaceNoise(wanted.seed, self._model.prior.mean.shape[1])

        def run(tiles: Tensor, starts: Tensor) -> Tensor:
            starts = starts + corner
            x = self._window.to_unit(tiles.to(self._device))
            x = self._stacked(x.squeeze(1)) if self._flat else x
            with torch.inference_mode():
                where = self._where(starts, start_mm)
                images = self._images(x, starts, where, wanted, noise, scan_noise)
            # The slices of a 2.5D stack are channels of its image.
            return torch.stack([image[:, : tiles.shape[2]].cpu() for image in images], dim=1)

        slices = blended_slices(run, grid.hu[box], self._tiling(), progress)
        for z, images in enumerate(slices, start=box[0].start):
            whole = np.zeros((len(images), *grid.shape[1:]), np.float32)
            whole[:, box[1], box[2]] = images.numpy()
            yield z, whole

    def _images(
        self,
        x: Tensor,
        starts: Tensor,
        where: Where,
        wanted: Wanted,
        noise: PlaceNoise,
        scan_noise: Tensor | None,
    ) -> list[Tensor]:
        """The images of a batch of tiles, each [B, d, h, w]."""
        target = other(self._source)

        def decoded(z: Tensor) -> Tensor:
            hu = self._window.to_hu(self._model.decode(target, z, where))
            return hu if self._flat else hu[:, 0]

        q_scan = self._model.encode(self._source, x, where)
        q = self._without(scan_noise, q_scan)
        if not wanted.samples:
            images = [decoded(q.mean)]
        else:  # Welford: no sample is kept
            mean = squares = torch.zeros(())
            for n in range(wanted.samples):
                hu = decoded(q.sample(self._noise(noise, n, starts, q.mean)))
                previous, mean = mean, mean + (hu - mean) / (n + 1)
                squares = squares + (hu - previous) * (hu - mean)
            images = [mean, torch.sqrt(squares / (wanted.samples - 1))]
        if wanted.responsibilities:
            images += self._shares(q_scan, images[0])
        return images

    def _without(self, noise: Tensor | None, q: Posterior) -> Posterior:
        """The posterior with the scan's noise left out of its mean, where it is known."""
        if noise is None:
            return q
        return Posterior(shrunk(q.mean, self._model.prior.mixture(), noise), q.log_var)

    def _scan_noise(self, grid: Volume, body: NDArray[np.bool_], start_mm: Tensor) -> Tensor | None:
        """The variance of the scan's noise in z, [K, C], if the translation is to leave it out.

        From neighbouring latent positions along z in the middle of the body, at some heights. None
        for a volume of too few slices, or narrower than a latent position.
        """
        stride, stack = self._model.stride, self._model.slices
        # In 2D two stacks without a common slice; in 3D two positions, seen with those around them.
        step, seen = (1, 2 * stack) if self._flat else (stride, 4 * stride)
        if not self._config.translate.denoise or not body.any():
            return None
        box = _box_round(body, self._around)
        last = box[0].stop - seen
        rows, columns = (_middle(part, _NOISE_VOXELS, stride) for part in box[1:])
        if last < box[0].start or rows.start == rows.stop or columns.start == columns.stop:
            return None
        heights = np.linspace(box[0].start // step, last // step, _NOISE_PAIRS, dtype=int)
        pairs = []
        for z in np.unique(heights) * step:
            hu = torch.as_tensor(grid.hu[z : z + seen, rows, columns], device=self._device)
            x = self._window.to_unit(hu.float())
            x = x.reshape(2, stack, *x.shape[1:]) if self._flat else x[None, None]
            starts = [[z + i * stack, rows.start, columns.start] for i in range(len(x))]
            where = self._where(torch.tensor(starts), start_mm)
            with torch.inference_mode():
                mean = self._model.encode(self._source, x, where).mean
            pairs.append(mean if self._flat else mean[0].movedim(1, 0)[1:3])
        m, beside = torch.stack(pairs, dim=1)
        with torch.inference_mode():
            return latent_noise(m, beside, self._model.prior.mixture())

    def _noise(self, noise: PlaceNoise, sample: int, starts: Tensor, like: Tensor) -> Tensor:
        """Of a batch of tiles, [B, C, *s]."""
        stride = self._model.stride
        drawn = []
        for z, y, x in starts.tolist():
            depth = 1 if self._flat else like.shape[2]
            first = (z if self._flat else z // stride, y // stride, x // stride)
            drawn.append(noise.at(sample, first, (depth, *like.shape[-2:])))
        stacked = torch.stack(drawn).to(like.device)
        return stacked[:, :, 0] if self._flat else stacked

    def _shares(self, q: Posterior, like: Tensor) -> list[Tensor]:
        """Responsibilities of every component at the voxels of their latent position."""
        shares = responsibilities(q.mean, q.log_var, self._model.prior.mixture())
        for axis in range(2, shares.dim()):
            shares = shares.repeat_interleave(self._model.stride, axis)
        if self._flat:
            shares = shares.unsqueeze(2).expand(-1, -1, like.shape[1], -1, -1)
        return list(shares.unbind(dim=1))

    def _tiling(self) -> Tiling:
        config, stride = self._config.translate, self._model.stride
        margin = self._reach if config.margin is None else config.margin
        flat = (1,) if self._flat else ()
        axes = len(config.tile)
        # Of a 2.5D stack the middle slice counts, and at the volume's ends those before or after.
        around = (self._model.slices // 2,) if self._flat else ()
        return Tiling(
            tile=(*flat, *config.tile),
            margin=(*around, *(margin,) * axes),
            stride=(*flat, *(stride,) * axes),
            overlap=config.overlap,
            batch=config.batch,
        )


def _box_round(body: NDArray[np.bool_], axes: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    """The body's box and a margin round it, at multiples of a step; margin and step of each axis.

    At its border the network sees padding instead of what is there, as it does at the volume's end.
    """
    box = []
    for axis, (margin, step) in enumerate(axes):
        others = tuple(a for a in range(body.ndim) if a != axis)
        found = np.flatnonzero(body.any(axis=others))
        first = max(int(found[0]) - margin, 0) // step * step
        stop = -(-(int(found[-1]) + 1 + margin) // step) * step
        box.append(slice(first, min(stop, body.shape[axis])))
    return tuple(box)


def _middle(part: slice, most: int, step: int) -> slice:
    """The middle of a part of an axis, at most so many voxels, at multiples of a step."""
    length = min(part.stop - part.start, most) // step * step
    first = part.start + (part.stop - part.start - length) // 2 // step * step
    return slice(first, first + length)


def _empty(grid: Volume, dtype: type) -> Volume:
    return Volume(np.zeros(grid.shape, dtype), grid.affine)


def _like(image: Volume, volume: Volume) -> Volume:
    """The image on the volume's grid, of its own type."""
    values = np.empty(volume.shape, image.hu.dtype)
    for part, own in _parts_like(image, volume):
        values[part] = np.rint(own) if values.dtype == np.uint8 else own
    return Volume(values, volume.affine)


def _parts_like(volume: Volume, reference: Volume) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The volume's values on the reference's grid, some slices of it at a time; 0 outside."""
    moved = reorder_like(volume, reference)
    same = same_grid(moved, reference)
    for first in range(0, reference.shape[0], _SLICES):
        part = slice(first, first + _SLICES)
        if same:
            yield part, moved.hu[part]
            continue
        affine = reference.affine.copy()
        affine[:3, 3] += affine[:3, 0] * first
        yield part, resample_like(volume, Volume(reference.hu[part], affine), fill=0.0).hu
