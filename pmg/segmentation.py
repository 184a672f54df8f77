"""The segmentation network of the downstream tasks: MONAI's U-Net on axial slices.

It learns the pancreas and calcified plaques from labelled scans of one domain, by MONAI's losses
and sliding windows; what is of pmg here is which voxels count and how patches are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from numpy.typing import NDArray
from torch import Tensor, nn

from pmg.arrays import HU

__all__ = ["CLASSES", "Labelled", "SegmentationSettings", "segment", "train_segmentation"]

# By number in a mask; 0 is everything else.
CLASSES = {"pancreas": 1, "plaque": 2}

# Soft tissue with contrast agent, and calcium: windows in HU, a channel each.
_WINDOWS_HU = ((-160.0, 340.0), (100.0, 1100.0))
# In the cross-entropy: a patch that has a plaque has five voxels of it among thousands.
_PLAQUE_WEIGHT = 50.0


@dataclass(frozen=True)
class Labelled:
    """A scan and the class of every voxel, [Z, Y, X] of one shape; slices along axis 0."""

    hu: HU
    classes: NDArray[np.uint8]


@dataclass(frozen=True)
class SegmentationSettings:
    """Size and length of the training; by default of a few minutes on two CPU cores."""

    channels: tuple[int, ...] = (16, 32, 64)
    patch: int = 64
    batch: int = 12
    steps: int = 1500
    lr: float = 2e-3
    seed: int = 0


def train_segmentation(
    scans: Sequence[Labelled],
    settings: SegmentationSettings,
    device: torch.device,
    progress: Callable[[], None] = lambda: None,
) -> nn.Module:
    """A network that gives logits [B, 3, h, w] for windows of axial slices.

    Every patch holds a voxel of a class that is drawn evenly from those that a scan has, background
    among them: plaques are one voxel in ten thousand. progress is called after every step. Raises
    ValueError without any scan.
    """
    if not scans:
        raise ValueError("no scans to train on; expected one at least")
    rng = np.random.default_rng([settings.seed, 0x7365676D])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model: nn.Module = UNet(
            spatial_dims=2,
            in_channels=len(_WINDOWS_HU),
            out_channels=1 + len(CLASSES),
            channels=settings.channels,
            strides=(2,) * (len(settings.channels) - 1),
            num_res_units=1,
            norm="batch",  # instance norm would hide how bright a patch is
        ).to(device)
    places = [_places(scan.classes) for scan in scans]
    dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    weight = torch.tensor([1.0, 1.0, _PLAQUE_WEIGHT], device=device)
    adam = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.steps)
    model.train()
    for _ in range(settings.steps):
        which = rng.integers(len(scans), size=settings.batch)
        cut = [_patch(scans[n], places[n], settings.patch, rng) for n in which]
        x = torch.from_numpy(np.stack([hu for hu, _ in cut])).to(device)
        y = torch.from_numpy(np.stack([classes for _, classes in cut])).to(device)
        adam.zero_grad(set_to_none=True)
        logits = model(_windows(x))
        torch.autograd.backward(dice(logits, y[:, None]) + F.cross_entropy(logits, y, weight))
        adam.step()
        schedule.step()
        progress()
    model.eval()
    return model


def segment(
    model: nn.Module, hu: HU, settings: SegmentationSettings, device: torch.device
) -> NDArray[np.uint8]:
    """The class of every voxel of a scan, [Z, Y, X]."""
    window = (settings.patch, settings.patch)
    inferer = SlidingWindowInferer(window, sw_batch_size=16, overlap=0.25, mode="gaussian")
    classes = np.empty(hu.shape, np.uint8)
    with torch.inference_mode():
        for z, plane in enumerate(hu):
            x = torch.from_numpy(plane.astype(np.float32))[None].to(device)
            logits = inferer(_windows(x), model)
            assert isinstance(logits, Tensor)
            classes[z] = logits[0].argmax(dim=0).cpu().numpy()
    return classes


def _windows(hu: Tensor) -> Tensor:
    """[B, h, w] HU to [B, channels, h, w] of about -1 to 1."""
    channels = [(hu - low) / (high - low) * 2 - 1 for low, high in _WINDOWS_HU]
    return torch.stack(channels, dim=1).clamp(-1, 1)


def _places(classes: NDArray[np.uint8]) -> list[NDArray[np.int_]]:
    """Voxels [n, 3] of every class that the scan has."""
    each = (np.argwhere(classes == number) for number in (0, *CLASSES.values()))
    return [voxels for voxels in each if len(voxels)]


def _patch(
    scan: Labelled, places: list[NDArray[np.int_]], size: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """[size, size] of one slice with a voxel of a drawn class in it; what lies outside is air."""
    voxels = places[rng.integers(len(places))]
    z, y, x = voxels[rng.integers(len(voxels))]
    start = np.array([y, x]) - rng.integers(size, size=2)
    start = np.clip(start, 0, np.maximum(np.array(scan.hu.shape[1:]) - size, 0))
    box = (z, slice(start[0], start[0] + size), slice(start[1], start[1] + size))
    hu = torch.from_numpy(scan.hu[box].astype(np.float32))
    classes = torch.from_numpy(scan.classes[box].astype(np.int64))
    missing = [0, size - hu.shape[1], 0, size - hu.shape[0]]
    if rng.random() < 0.5:  # brightness of a scanner and dose of another patient
        hu = hu * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-10, 10))
    padded = F.pad(hu, missing, value=-1024.0)
    return padded.numpy(), F.pad(classes, missing).numpy()
