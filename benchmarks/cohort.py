"""Synthetic CT volumes, and the same voxels in the format of every reader that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from scipy.ndimage import gaussian_filter
from zarr.codecs import BloscCodec, Crc32cCodec, ShardingCodecIndexLocation
from zarr.core.array import ShardsConfigParam

from storage.body import FrameOrigin
from storage.store import Store
from storage.volume import Volume

__all__ = ["PEER_CHUNK", "Cohort", "add_format", "make_cohort"]

PEER_CHUNK = (32, 64, 64)  # the best that was found for boxes read alone
SPACING_MM = (2.0, 1.0, 1.0)


@dataclass(frozen=True)
class Cohort:
    """A folder with `store` and, for volume i, `i.raw` and whatever formats were added."""

    folder: Path
    count: int
    shape: tuple[int, int, int]

    def path(self, number: int, format: str) -> Path:
        return self.folder / f"{number}.{format}"

    def raw(self, number: int) -> np.ndarray:
        return np.memmap(self.path(number, "raw"), np.int16, "r", shape=self.shape)

    def bytes_of(self, format: str) -> int:
        paths = [self.path(number, format) for number in range(self.count)]
        files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("*"))]
        return sum(f.stat().st_size for f in files if f.is_file())


def make_cohort(folder: Path, count: int, shape: tuple[int, int, int]) -> Cohort:
    """`count` volumes, of domains 1 and 2 in turn, each of a patient of its own."""
    cohort = Cohort(folder, count, shape)
    store = Store.create(folder / "store", SPACING_MM)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])[[0, 1, 2, 3]][:, [2, 1, 0, 3]]
    rows = []
    with store.writer() as writer:
        for number in range(count):
            rng = np.random.default_rng(number)
            hu, body = _subject(shape, rng)
            hu.tofile(cohort.path(number, "raw"))
            origin = [n // 2 + int(rng.integers(-n // 16, n // 16 + 1)) for n in shape]
            rows.append(
                writer.stage(
                    Volume(hu, affine),
                    body,
                    FrameOrigin((origin[0], origin[1], origin[2]), "middle of the body"),
                    volume_id=f"v{number}",
                    patient=f"p{number}",
                    domain=1 + number % 2,
                    phase="synthetic",
                    source_digest="",
                    ingest_version=0,
                    provenance={},
                )
            )
        writer.commit(rows)
    return cohort


def _subject(
    shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(HU, body): an ellipse of soft tissue with lungs, bone and fat in it, under CT's noise.

    Correlated in the plane with a deviation of 18 HU, as of 3 mm slices: with the share of air, it
    decides how well a codec does.
    """
    z, y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    radius = 0.85 + 0.05 * np.sin(4 * z + rng.uniform(0, 6))
    body = (y / 0.8) ** 2 + x**2 < radius**2
    coarse = gaussian_filter(rng.normal(0, 1, [n // 8 + 1 for n in shape]), 1.5)
    organs = np.kron(coarse / coarse.std(), np.ones((8, 8, 8)))[tuple(map(slice, shape))]
    hu = np.select([organs > 1.6, organs < -1.2], [400.0, -100.0], 40 + 25 * organs)
    lungs = ((np.abs(x) - 0.42) / 0.25) ** 2 + (y / 0.4) ** 2 + ((z - 0.5) / 0.5) ** 2 < 1
    hu = np.where(body, np.where(lungs, -860.0, hu), -1000.0)
    noise = gaussian_filter(rng.normal(0, 1, shape).astype(np.float32), (0, 0.6, 0.6))
    hu += noise * (18 / noise.std()) * np.where(body, 1, 0.4)
    return np.clip(hu, -1024, 3071).astype(np.int16), body


def add_format(cohort: Cohort, format: str) -> None:
    """Write every volume once more. Raises ImportError where the format's library is missing."""
    write = _WRITERS[format]
    for number in range(cohort.count):
        path = cohort.path(number, format)
        if not path.exists():
            write(cohort.raw(number), path)


def _write_zarr(hu: np.ndarray, path: Path) -> None:
    """Shards of one volume, in the codecs of the store and with chunks of a box reader."""
    shard = [-(-n // c) * c for n, c in zip(hu.shape, PEER_CHUNK, strict=True)]
    array = zarr.create_array(
        store=path,
        shape=hu.shape,
        dtype="int16",
        chunks=PEER_CHUNK,
        # At the start, since nanio's server has no suffix ranges.
        shards=ShardsConfigParam(
            shape=tuple(shard), index_location=ShardingCodecIndexLocation.start
        ),
        compressors=[
            BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=2),
            Crc32cCodec(),
        ],
    )
    array[...] = hu


def _write_nnunet(hu: np.ndarray, path: Path) -> None:
    """As nnU-Net v2 stores a case: float32, zstd at level 8, blocks for the first cache."""
    _write_blosc2(hu.astype(np.float32), path, "ZSTD", 8, (64, 64, 64), (8, 16, 32))


def _write_nnunet_2d(hu: np.ndarray, path: Path) -> None:
    """The same for patches of one slice, as nnU-Net shapes blocks and chunks by the patch."""
    _write_blosc2(hu.astype(np.float32), path, "ZSTD", 8, (4, 256, 256), (1, 64, 64))


def _write_b2nd(hu: np.ndarray, path: Path) -> None:
    """As the store has it: int16 by lz4."""
    _write_blosc2(np.array(hu), path, "LZ4", 5, PEER_CHUNK, (8, 32, 64))


def _write_blosc2(
    voxels: np.ndarray,
    path: Path,
    codec: str,
    level: int,
    chunks: tuple[int, ...],
    blocks: tuple[int, ...],
) -> None:
    import blosc2  # noqa: PLC0415

    blosc2.set_nthreads(1)
    filters = [blosc2.Filter.BITSHUFFLE if codec == "LZ4" else blosc2.Filter.SHUFFLE]
    parameters = blosc2.CParams(
        codec=getattr(blosc2.Codec, codec), clevel=level, filters=filters, nthreads=1
    )
    blosc2.asarray(
        voxels, chunks=chunks, blocks=blocks, urlpath=str(path), cparams=parameters, mode="w"
    )


def _write_nifti(hu: np.ndarray, path: Path) -> None:
    import nibabel  # noqa: PLC0415

    nibabel.save(nibabel.Nifti1Image(np.asarray(hu), np.diag([*SPACING_MM, 1.0])), path)


def _write_npy(hu: np.ndarray, path: Path) -> None:
    np.save(path, hu[None])


_WRITERS: dict[str, Callable[[np.ndarray, Path], None]] = {
    "zarr": _write_zarr,
    "nnunet.b2nd": _write_nnunet,
    "nnunet-2d.b2nd": _write_nnunet_2d,
    "b2nd": _write_b2nd,
    "nii": _write_nifti,
    "npy": _write_npy,
}
