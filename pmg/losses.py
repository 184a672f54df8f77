"""The terms of the objective, one function each; `step.py` weighs and adds them.

All return a scalar. x, x_hat: [B, 1, *S] in [-1, 1]. scores: one map per discriminator scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pmg.window import Window

__all__ = ["ADVERSARIAL", "LIKELIHOODS", "Adversarial", "change", "free_bits"]


def laplace(x_hat: Tensor, x: Tensor) -> Tensor:
    """-log p(x given z) of a Laplace likelihood of unit scale, per voxel, less its constant: L1."""
    return F.l1_loss(x_hat.float(), x.float())


def gaussian(x_hat: Tensor, x: Tensor) -> Tensor:
    """-log p(x given z) of a Gaussian likelihood of unit variance, per voxel, less its constant."""
    return 0.5 * F.mse_loss(x_hat.float(), x.float())


LIKELIHOODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "laplace": laplace,
    "gaussian": gaussian,
}


def change(x_translated: Tensor, x: Tensor, window: Window) -> Tensor:
    """Mean absolute change of HU by translation, in hundreds of HU (cf. Shrivastava et al. 2017).

    In HU, not in intensities, whose window compresses air and bone: a slip that the other terms do
    not see there is tens of HU.
    """
    return F.l1_loss(window.to_hu(x_translated), window.to_hu(x)) / 100


def free_bits(kl: Tensor, minimum: float) -> Tensor:
    """Mean KL, without gradient while it is below `minimum` nats per channel (Kingma et al. 2016).

    A minimum of 0 leaves it as it is: estimates from few samples may be negative, and cutting them
    there would bias them.
    """
    return kl.mean().clamp_min(minimum) if minimum > 0 else kl.mean()


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
