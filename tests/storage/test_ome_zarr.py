"""OME-Zarr: voxels, positions and metadata as other programs read them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import tensorstore
import zarr

from storage.nifti import write_nifti
from storage.ome_zarr import write_ome_zarr
from storage.volume import Volume


def volume(seed: int = 0, turn: float = 0.0, dtype=np.int16) -> Volume:
    hu = np.random.default_rng(seed).integers(-1000, 2000, (35, 40, 50)).astype(dtype)
    affine = np.eye(4)
    c, s = np.cos(turn), np.sin(turn)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine[:3, :3] = about_x @ np.eye(3)[:, ::-1] * (3.0, 0.8, 0.7)
    affine[:3, 3] = (-17.5, 22.25, -90.0)
    return Volume(hu, affine)


def read(path):
    """The array by tensorstore, which knows nothing of this program."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "0")}}
    return tensorstore.open(spec, open=True).result().read().result()


def test_voxels_and_positions_are_those_that_simpleitk_reads_from_the_nifti(tmp_path):
    one = volume()
    write_ome_zarr(one, tmp_path / "a.ome.zarr", name="a")
    write_nifti(one, tmp_path / "a.nii")
    image = sitk.ReadImage(str(tmp_path / "a.nii"))
    np.testing.assert_array_equal(read(tmp_path / "a.ome.zarr"), sitk.GetArrayFromImage(image))
    ome = json.loads((tmp_path / "a.ome.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in multiscale["axes"]} == {"millimeter"}
    (level,) = multiscale["datasets"]
    scale, translation = level["coordinateTransformations"]
    for index in ((0, 0, 0), (34, 39, 49), (3, 20, 7)):
        point = np.array(scale["scale"]) * index + translation["translation"]
        expected = image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
        np.testing.assert_allclose(point[::-1], expected, atol=1e-3)


def test_an_oblique_grid_keeps_its_affine(tmp_path):
    one = volume(turn=0.3)
    write_ome_zarr(one, tmp_path / "a.ome.zarr", name="a")
    write_nifti(one, tmp_path / "a.nii")
    image = sitk.ReadImage(str(tmp_path / "a.nii"))
    array = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")["0"]
    point = np.array(array.attrs["affine"]) @ (30, 10, 45, 1)
    expected = image.TransformIndexToPhysicalPoint((45, 10, 30))
    np.testing.assert_allclose(point[:3], expected, atol=1e-3)


def test_several_volumes_are_channels(tmp_path):
    images = [volume(seed, dtype=np.uint8) for seed in range(3)]
    write_ome_zarr(images, tmp_path / "a.ome.zarr", name="a", unit="PCT")
    np.testing.assert_array_equal(read(tmp_path / "a.ome.zarr"), [one.hu for one in images])
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    axes = group.attrs["ome"]["multiscales"][0]["axes"]
    assert [axis["name"] for axis in axes] == ["c", "z", "y", "x"]
    assert group["0"].attrs["unit"] == "PCT"


def test_nothing_is_written_over_and_nothing_half_written_is_left(tmp_path, monkeypatch):
    write_ome_zarr(volume(), tmp_path / "a.ome.zarr", name="a")
    with pytest.raises(FileExistsError, match="choose a new one"):
        write_ome_zarr(volume(), tmp_path / "a.ome.zarr", name="a")
    monkeypatch.setattr("storage.ome_zarr._CHUNK", (0, 0, 0))  # with which Zarr fails
    with pytest.raises(ZeroDivisionError):
        write_ome_zarr(volume(), tmp_path / "b.ome.zarr", name="b")
    assert [one.name for one in tmp_path.iterdir()] == ["a.ome.zarr"]
