"""Guards against collapse: fit the mixture to encodings, re-seed components that died.

Vectors are [N, C] float; a mixture is the plain `Mixture` of `prior.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pmg.prior import Mixture

__all__ = ["fit_mixture", "reseed_dead"]

_MAX_VECTORS = 20_000


def fit_mixture(
    z: Tensor, components: int, *, min_var: float = 1e-4, iterations: int = 50, seed: int = 0
) -> Mixture:
    """Expectation maximisation of a diagonal Gaussian mixture, started by k-means++.

    z: [N, C]. Returns float32 tensors on z's device. The k-means++ draw and a cap of 20,000
    vectors are random by `seed` alone, so that every rank gets the same mixture from the same z.
    """
    generator = torch.Generator().manual_seed(seed)
    device = z.device
    z = z.detach().double().cpu()
    if len(z) > _MAX_VECTORS:
        z = z[torch.randperm(len(z), generator=generator)[:_MAX_VECTORS]]
    mean = _spread_out(z, components, generator)
    var = z.var(dim=0, correction=0).clamp_min(min_var).expand(components, -1).clone()
    log_weights = torch.full((components,), -math.log(components), dtype=z.dtype)
    for _ in range(iterations):
        log_joint = Mixture(log_weights, mean, var.log()).log_joint(z).double()
        share = torch.softmax(log_joint, dim=1)  # [N, K]
        mass = share.sum(dim=0).clamp_min(1e-8)
        log_weights = torch.log(mass / mass.sum())
        mean = (share.T @ z) / mass[:, None]
        var = ((share.T @ z.square()) / mass[:, None] - mean.square()).clamp_min(min_var)
    return Mixture(*(t.float().to(device) for t in (log_weights, mean, var.log())))


def reseed_dead(
    mixture: Mixture, share: Tensor, z: Tensor, *, dead_below: float = 0.1, seed: int = 0
) -> Mixture | None:
    """Move components that explain next to nothing to where the mixture explains least.

    share: [K], mean responsibilities. A component is dead when its share is below `dead_below`
    of an even share 1 / K. It takes one of the least likely of the vectors z [N, C] as its mean,
    the data's overall variance, and an even weight. Returns None when none is dead.
    """
    components = len(share)
    dead = torch.nonzero(share < dead_below / components).flatten()
    if components == 1 or len(dead) == 0:
        return None
    generator = torch.Generator().manual_seed(seed)
    log_prob = torch.logsumexp(mixture.log_joint(z), dim=1)
    unlikely = torch.argsort(log_prob)[: max(len(dead), len(z) // 20)].cpu()
    chosen = unlikely[torch.randperm(len(unlikely), generator=generator)[: len(dead)]]
    mean, log_var = mixture.mean.clone(), mixture.log_var.clone()
    weights = mixture.log_weights.exp()
    mean[dead] = z[chosen.to(z.device)].to(mean.dtype)
    log_var[dead] = torch.log(z.var(dim=0, correction=0).clamp_min(1e-4)).to(log_var.dtype)
    weights[dead] = 1 / components
    return Mixture(torch.log(weights / weights.sum()), mean, log_var)


def _spread_out(z: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++ seeding (Arthur & Vassilvitskii 2007): each next centre far from those chosen."""
    index = int(torch.randint(len(z), (1,), generator=generator))
    centres = [z[index]]
    distance = (z - centres[0]).square().sum(dim=1)
    for _ in range(count - 1):
        index = int(torch.multinomial(distance + 1e-12, 1, generator=generator))
        centres.append(z[index])
        distance = torch.minimum(distance, (z - centres[-1]).square().sum(dim=1))
    return torch.stack(centres)
