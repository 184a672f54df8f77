"""The latent behind a noisy scan: its posterior mean under the mixture, given the scan's noise.

An encoding is m = z + n, with noise n of variance s_kc^2 where component k explains it. The prior
was learned from such encodings: its sigma_kc^2 holds the noise too. Then (for patches of images:
Zoran & Weiss, ICCV 2011)

E[z given m] = sum_k r_k(m) (mu_k + (1 - s_kc^2 / sigma_kc^2)+ (m - mu_k))

What a tissue varies in less than the scan's noise is left out there; plaques and edges, which other
components explain, stay. One component for all of them has nothing to tell noise by.
Shapes: B batch, C latent channels, K components, S the spatial axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pmg.prior import Mixture

__all__ = ["latent_noise", "shrunk"]

_TO_DEVIATION = 1.4826  # of a normal distribution's median absolute value
_ENOUGH = 50  # pairs of positions


def latent_noise(m: Tensor, beside: Tensor, prior: Mixture) -> Tensor:
    """s_kc^2, the variance of the scan's noise in encodings that component k explains: [K, C].

    m, beside: [B, C, *S], encodings of neighbours, whose anatomy is alike and whose noise is not.
    From the median of their difference, to which borders and vessels matter little; noise that
    neighbours share is missed, and stays. 0 for a component that explains next to nothing.
    """
    own, others = (prior.log_joint(z).argmax(dim=1).flatten() for z in (m, beside))
    difference = (m - beside).movedim(1, -1).flatten(0, -2)
    variance = torch.zeros_like(prior.mean)
    for k in range(len(variance)):
        both = (own == k) & (others == k)
        if both.sum() >= _ENOUGH:
            deviation = _TO_DEVIATION * difference[both].abs().median(dim=0).values
            variance[k] = deviation.square() / 2
    return variance


def shrunk(m: Tensor, prior: Mixture, noise: Tensor) -> Tensor:
    """E[z given m]. m: [B, C, *S]; noise: [K, C], of `latent_noise`. Returns [B, C, *S]."""
    share = torch.softmax(prior.log_joint(m), dim=1)
    signal = (1 - noise * torch.exp(-prior.log_var)).clamp_min(0)
    centre = torch.einsum("bk...,kc->bc...", share, (1 - signal) * prior.mean)
    return centre + torch.einsum("bk...,kc->bc...", share, signal) * m
