"""The terms of the objective, one function each; `step.py` weighs and adds them.

All return a scalar. x, x_hat: [B, N, *S] in [-1, 1]. scores: one map per discriminator scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pmg.window import Window

__all__ = [
    "ADVERSARIAL",
    "LIKELIHOODS",
    "Adversarial",
    "calcium_weight",
    "change",
    "free_bits",
    "gradient_change",
    "gradient_penalty",
]


def laplace(x_hat: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """-log p(x given z) of a Laplace likelihood of unit scale, per voxel, less its constant: L1.

    weight: what each voxel counts, of x's shape; 1 if not given.
    """
    return _mean(F.l1_loss(x_hat.float(), x.float(), reduction="none"), weight)


def gaussian(x_hat: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """-log p(x given z) of a Gaussian likelihood of unit variance, per voxel, less its constant.

    weight: as in `laplace`.
    """
    return _mean(0.5 * F.mse_loss(x_hat.float(), x.float(), reduction="none"), weight)


LIKELIHOODS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "laplace": laplace,
    "gaussian": gaussian,
}


def calcium_weight(x: Tensor, window: Window, threshold_hu: float, calcium: float) -> Tensor | None:
    """What each voxel counts in the likelihood: `calcium` above threshold_hu in x, elsewhere 1.

    A plaque of a few voxels is next to nothing in a patch's mean. None where calcium is 1.
    """
    if calcium == 1:
        return None
    return 1 + (calcium - 1) * (window.to_hu(x) > threshold_hu).float()


def change(x_translated: Tensor, x: Tensor, window: Window) -> Tensor:
    """Mean absolute change of HU by translation, in hundreds of HU (cf. Shrivastava et al. 2017).

    In HU, not in intensities, whose window compresses air and bone: a slip that the other terms do
    not see there is tens of HU.
    """
    return F.l1_loss(window.to_hu(x_translated), window.to_hu(x)) / 100


def gradient_change(x_translated: Tensor, x: Tensor, window: Window) -> Tensor:
    """Mean absolute change of the differences between neighbouring voxels, in hundreds of HU.

    Contrast that rises and falls smoothly costs next to nothing; an edge that translation blurs,
    moves or invents costs its height. The mean over the spatial axes.
    """
    moved = (window.to_hu(x_translated) - window.to_hu(x)) / 100
    return torch.stack([moved.diff(dim=axis).abs().mean() for axis in range(2, x.dim())]).mean()


def gradient_penalty(scores: Sequence[Tensor], x: Tensor) -> Tensor:
    """R1: mean over the batch of half the squared gradient of D(x) with respect to x.

    D(x) is what the adversarial losses look at: the mean of each scale's scores, summed over the
    scales. Keeps D flat where real patches lie (Mescheder et al. 2018). x: [B, N, *S], requiring
    gradients; scores: D's of x.
    """
    total = torch.stack([s.float().flatten(1).mean(dim=1) for s in scores]).sum()
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(dim=1).mean()


def free_bits(kl: Tensor, minimum: float) -> Tensor:
    """Mean KL, without gradient while it is below `minimum` nats per channel (Kingma et al. 2016).

    A minimum of 0 leaves it as it is: estimates from few samples may be negative, and cutting them
    there would bias them.
    """
    return kl.mean().clamp_min(minimum) if minimum > 0 else kl.mean()


def _mean(per_voxel: Tensor, weight: Tensor | None) -> Tensor:
    """Over all voxels, not over the weights: a voxel of weight 1 counts the same in any patch."""
    return per_voxel.mean() if weight is None else (weight * per_voxel).mean()


class Adversarial:
    """A pair of losses: what D minimises on real and translated patches, and what G minimises."""

    def __init__(
        self,
        real: Callable[[Tensor], Tensor],
        fake: Callable[[Tensor], Tensor],
        generator: Callable[[Tensor], Tensor],
    ) -> None:
        self._real, self._fake, self._generator = real, fake, generator

    def discriminator(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
        """Sum over the scales (as UNIT's code) of the losses on real and on translated patches."""
        pairs = zip(real, fake, strict=True)
        terms = [self._real(r.float()).mean() + self._fake(f.float()).mean() for r, f in pairs]
        return torch.stack(terms).sum()

    def generator(self, fake: Sequence[Tensor]) -> Tensor:
        return torch.stack([self._generator(f.float()).mean() for f in fake]).sum()


ADVERSARIAL: dict[str, Adversarial] = {
    # Mao et al. 2017; UNIT's code.
    "lsgan": Adversarial(
        real=lambda s: (s - 1).square(),
        fake=lambda s: s.square(),
        generator=lambda s: (s - 1).square(),
    ),
    # log D(x) + log(1 - D(G(z))) with D = sigmoid(score), as in the paper; G's side is the
    # non-saturating form of Goodfellow et al. 2014, whose gradient does not vanish early on.
    "log": Adversarial(
        real=lambda s: F.softplus(-s),
        fake=F.softplus,
        generator=lambda s: F.softplus(-s),
    ),
    # Lim & Ye 2017.
    "hinge": Adversarial(
        real=lambda s: F.relu(1 - s),
        fake=lambda s: F.relu(1 + s),
        generator=lambda s: -s,
    ),
}
