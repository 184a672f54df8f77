"""A whole volume from one domain to the other: to the model's grid, through tiles, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmg.config import Config
from pmg.model import Domain, Translator
from pmg.prior import responsibilities
from pmg.tiles import Progress, blend
from pmg.weights import load_translator
from pmg.where import Where
from pmg.window import window_of
from storage.body import body_mask, frame_origin
from storage.grid import canonical, resample, resample_like
from storage.volume import Volume

__all__ = ["GridSlice", "VolumeTranslator"]

_LOW_HU = -1024


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

    @classmethod
    def open(cls, model: Path, source: int, device: str = "auto") -> VolumeTranslator:
        """From the folder of a run, or of its model. device: auto takes a GPU if there is one."""
        folder = model / "model" if (model / "model").is_dir() else model
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        chosen = torch.device(name)
        translator, config = load_translator(folder, chosen)
        return cls(translator, config, 1 if source == 1 else 2, chosen)

    @property
    def config(self) -> Config:
        return self._config

    def translate(self, volume: Volume, progress: Progress | None = None) -> Volume:
        """The volume in the other domain, on its own grid, int16 HU.

        What the model changes is computed on the model's grid and added to the source. Detail finer
        than that grid is thereby kept as it is, and so is all that lies outside the body.
        """
        grid = self._on_grid(volume)
        target = self._translate_grid(grid, progress)
        seen = np.clip(grid.hu, self._window.low_hu, self._window.high_hu)  # metal may lie above
        change = np.where(body_mask(grid), target - seen.astype(np.float32), 0)
        own = resample_like(Volume(change.astype(np.float32), grid.affine), volume, fill=0.0)
        hu = np.clip(np.rint(volume.hu + own.hu), _LOW_HU, np.iinfo(np.int16).max)
        return Volume(hu.astype(np.int16), volume.affine)

    def slice(self, volume: Volume, z_mm: float, truth: Volume | None = None) -> GridSlice:
        """What the model sees and makes of the axial slice at z_mm (LPS), nearest in the volume."""
        grid = self._on_grid(volume)
        z = round((z_mm - grid.affine[2, 3]) / self._spacing_mm[0])
        z = min(max(z, 0), grid.shape[0] - 1)
        stride = self._model.stride
        rows, columns = (n // stride * stride for n in grid.shape[1:])
        depth = 1 if self._flat else min(self._config.translate.tile[0], grid.shape[0])
        first = min(max(z - depth // 2, 0), grid.shape[0] - depth)
        part = (slice(first, first + depth), slice(rows), slice(columns))
        hu = torch.as_tensor(grid.hu[part].astype(np.float32), device=self._device)
        where = self._where(torch.tensor([[first, 0, 0]]), self._frame_start_mm(grid))
        with torch.inference_mode():
            x = self._window.to_unit(hu)[None]
            x = x if self._flat else x[None]
            translated, q = self._model.translate(self._source, x, where)
            shares = responsibilities(q.mean, q.log_var, self._model.prior.mixture())
        target, tissue = self._window.to_hu(translated)[0, 0], shares.argmax(dim=1)[0]
        if not self._flat:
            target, tissue = target[z - first], tissue[(z - first) // stride]
        tissue = tissue.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
        return GridSlice(
            grid.hu[z, :rows, :columns].astype(np.float32),
            target.cpu().numpy(),
            None
            if truth is None
            else self._on_grid(truth).hu[z, :rows, :columns].astype(np.float32),
            tissue.cpu().numpy(),
        )

    def _on_grid(self, volume: Volume) -> Volume:
        return resample(canonical(volume), self._spacing_mm)

    def _frame_start_mm(self, grid: Volume) -> Tensor:
        """Frame coordinates of the grid's first voxel."""
        origin = frame_origin(grid, body_mask(grid)).index
        return -torch.tensor(origin) * torch.tensor(self._spacing_mm)

    def _where(self, starts: Tensor, start_mm: Tensor) -> Where:
        position = starts * torch.tensor(self._spacing_mm) + start_mm
        return Where(position.float().to(self._device), self._spacing_mm)

    def _translate_grid(self, grid: Volume, progress: Progress | None) -> NDArray[np.float32]:
        config = self._config.translate
        start_mm = self._frame_start_mm(grid)

        def run(tiles: Tensor, starts: Tensor) -> Tensor:
            x = self._window.to_unit(tiles.to(self._device))
            translated, _ = self._model.translate(
                self._source, x.squeeze(2) if self._flat else x, self._where(starts, start_mm)
            )
            hu = self._window.to_hu(translated).cpu()
            return hu.unsqueeze(2) if self._flat else hu

        stride = self._model.stride
        with torch.inference_mode():
            hu: NDArray[np.float32] = blend(
                run,
                torch.as_tensor(grid.hu.astype(np.float32)),
                tile=(1, *config.tile) if self._flat else config.tile,
                overlap=config.overlap,
                batch=config.batch,
                stride=(1, stride, stride) if self._flat else (stride,) * 3,
                progress=progress,
            ).numpy()
        return hu
