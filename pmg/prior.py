"""The latent prior: a learned mixture of Gaussians at every latent position, and its KL estimators.

p(z) = prod_pos sum_k pi_k N(z_pos; mu_k, diag sigma_k^2), always float32 and in log space.
Shapes: B batch, C latent channels, K components, S the spatial axes (any number of them).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

__all__ = [
    "KL_ESTIMATORS",
    "Mixture",
    "MixturePrior",
    "active_channels",
    "effective_components",
    "kl_bound",
    "kl_estimator",
    "kl_min",
    "kl_monte_carlo",
    "kl_vade",
    "mean_responsibilities",
    "responsibilities",
]

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Mixture:
    """The mixture's parameters as plain tensors: log_weights [K], mean [K, C], log_var [K, C]."""

    log_weights: Tensor
    mean: Tensor
    log_var: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) per latent position, in nats. z: [B, C, *S]. Returns [B, *S]."""
        return torch.logsumexp(self.log_joint(z), dim=1)

    def log_joint(self, z: Tensor) -> Tensor:
        """log pi_k + log N(z; mu_k, sigma_k^2): [B, K, *S]."""
        distance = self._squared_distance(z, second_moment=z.double().square())
        constant = (self.log_var.double() + _LOG_2PI).sum(dim=1)
        log_normal = -0.5 * (distance + _over_components(constant, z))
        return _over_components(self.log_weights, z) + log_normal.to(self.mean.dtype)

    def kl_to_components(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """KL(q, N_k) of a diagonal Gaussian to each component, in nats.

        1/2 sum_c (log sigma_kc^2 - log s_c^2 + (s_c^2 + (m_c - mu_kc)^2) / sigma_kc^2 - 1)

        mean, log_var: [B, C, *S]. Returns [B, K, *S].
        """
        return self.exact_kl_to_components(mean, log_var).to(self.mean.dtype)

    def exact_kl_to_components(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """As `kl_to_components`, in float64: of 1e5 nats a softmax in float32 keeps two digits."""
        mean, log_var = mean.double(), log_var.double()  # once: gradients too cancel in float64
        distance = self._squared_distance(mean, mean.square() + torch.exp(log_var))
        own = (log_var + 1).sum(dim=1, keepdim=True)
        constant = _over_components(self.log_var.double().sum(dim=1), mean)
        return 0.5 * (distance + constant - own)

    def _squared_distance(self, mean: Tensor, second_moment: Tensor) -> Tensor:
        """E sum_c (z_c - mu_kc)^2 / sigma_kc^2 of a z with these moments [B, C, *S]: [B, K, *S].

        The square is expanded into products of matrices, so that nothing of the size
        B K C S ever exists: 5 GiB of them per KL at K = C = 64 and 64 x 64 positions. In float64,
        since in float32 the expanded terms cancel to errors of nats where sigma is small.
        """
        centre, precision = self.mean.double(), torch.exp(-self.log_var.double())
        factors = torch.cat([precision, -2 * centre * precision], dim=1)  # [K, 2C]
        moments = torch.cat([second_moment, mean.double()], dim=1)
        distance = factors @ moments.reshape(len(mean), factors.shape[1], -1)  # [B, K, N]
        distance = distance.view(len(mean), -1, *mean.shape[2:])
        return distance + _over_components((centre.square() * precision).sum(dim=1), mean)


class MixturePrior(nn.Module):
    """Parameters of the mixture, with floors that keep every component alive.

    pi_k = floor + (1 - K floor) softmax(logits)_k,  sigma_k^2 = min_std^2 + exp(log_scale_k).
    With learned=False the parameters stay where they start: K = 1 is then N(0, 1), UNIT's prior.
    """

    def __init__(
        self,
        components: int,
        channels: int,
        *,
        min_weight: float = 1e-3,
        min_std: float = 0.05,
        learned: bool = True,
    ) -> None:
        super().__init__()
        if components * min_weight >= 1:
            raise ValueError(
                f"prior.min_weight {min_weight} times prior.components {components} must be below 1"
            )
        self.min_weight = min_weight if components > 1 else 0.0
        self.min_std = min_std if learned else 0.0
        self.logits = nn.Parameter(torch.zeros(components), requires_grad=learned)
        start = torch.randn(components, channels) if components > 1 else torch.zeros(1, channels)
        self.mean = nn.Parameter(start, requires_grad=learned)
        self.log_scale = nn.Parameter(
            torch.full((components, channels), math.log(1 - self.min_std**2)),
            requires_grad=learned,
        )

    @property
    def components(self) -> int:
        return self.logits.numel()

    def mixture(self) -> Mixture:
        """The mixture in float32, whatever the networks' type."""
        return Mixture(*self())

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """log_weights, mean, log_var: plain tensors, on which DeepSpeed's hooks at ZeRO 3 rely."""
        log_share = torch.log_softmax(self.logits.float(), dim=0)
        log_share = log_share + math.log1p(-self.components * self.min_weight)
        log_weights = _raised(log_share, self.min_weight)
        log_var = _raised(self.log_scale.float(), self.min_std**2)
        return log_weights, self.mean.float(), log_var

    def raw_from(self, mixture: Mixture) -> dict[str, Tensor]:
        """Parameter values whose `mixture` is the given mixture, as near as the floors allow."""
        weights = torch.exp(mixture.log_weights) - self.min_weight
        scale = torch.exp(mixture.log_var) - self.min_std**2
        return {
            "logits": torch.log(weights.clamp_min(1e-6)),
            "mean": mixture.mean,
            "log_scale": torch.log(scale.clamp_min(1e-6)),
        }


def kl_bound(mean: Tensor, log_var: Tensor, prior: Mixture) -> Tensor:
    """Upper bound of KL(q, prior) at every latent position, in nats per channel.

    -logsumexp_k(log pi_k - KL(q, N_k)) / C: exact for K = 1; equals the ELBO with optimal
    responsibilities (Hershey & Olsen 2007, eq. 20 for one Gaussian).

    mean, log_var: [B, C, *S]. Returns [B, *S], float32 whatever the inputs' type.
    """
    kl = prior.exact_kl_to_components(mean, log_var)
    scores = _over_components(prior.log_weights.double(), mean) - kl
    return (-torch.logsumexp(scores, dim=1) / mean.shape[1]).to(prior.mean.dtype)


def kl_monte_carlo(mean: Tensor, log_var: Tensor, prior: Mixture, samples: int = 1) -> Tensor:
    """Unbiased estimate of KL(q, prior): mean over samples of log q(z) - log p(z), z ~ q.

    Same shapes and units as `kl_bound`; may be negative for few samples.
    """
    mean, log_var = mean.to(prior.mean.dtype), log_var.to(prior.mean.dtype)
    total = torch.zeros_like(mean[:, 0])
    for _ in range(samples):
        noise = torch.randn_like(mean)
        z = mean + torch.exp(0.5 * log_var) * noise
        log_q = -0.5 * (noise.square() + log_var + _LOG_2PI).sum(dim=1)
        total = total + log_q - prior.log_prob(z)
    return total / (samples * mean.shape[1])


def kl_vade(mean: Tensor, log_var: Tensor, prior: Mixture, samples: int = 1) -> Tensor:
    """Bound with responsibilities gamma_k = p(k given z) at samples z ~ q (Jiang et al. 2017).

    As in VaDE: sum_k gamma_k (KL(q, N_k) + log gamma_k - log pi_k) / C. Never below `kl_bound`,
    which is the minimum of this expression over gamma. Same shapes and units as `kl_bound`.
    """
    mean, log_var = mean.to(prior.mean.dtype), log_var.to(prior.mean.dtype)
    kl = prior.kl_to_components(mean, log_var)
    log_weights = _over_components(prior.log_weights, mean)
    total = torch.zeros_like(kl[:, 0])
    for _ in range(samples):
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        log_gamma = torch.log_softmax(prior.log_joint(z), dim=1)
        total = total + (log_gamma.exp() * (kl + log_gamma - log_weights)).sum(dim=1)
    return total / (samples * mean.shape[1])


def kl_min(mean: Tensor, log_var: Tensor, prior: Mixture) -> Tensor:
    """Bound by the single best component: min_k (KL(q, N_k) - log pi_k) / C.

    Never below `kl_bound`. Same shapes and units as `kl_bound`.
    """
    scores = prior.kl_to_components(mean, log_var) - _over_components(prior.log_weights, mean)
    return scores.amin(dim=1) / mean.shape[1]


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor, Mixture], Tensor]] = {
    "bound": kl_bound,
    "monte_carlo": kl_monte_carlo,
    "vade": kl_vade,
    "min": kl_min,
}
_SAMPLING = {"monte_carlo": kl_monte_carlo, "vade": kl_vade}


def kl_estimator(name: str, samples: int = 1) -> Callable[[Tensor, Tensor, Mixture], Tensor]:
    """The estimator of that name; those that sample the posterior take so many samples."""
    sampling = _SAMPLING.get(name)
    return KL_ESTIMATORS[name] if sampling is None else partial(sampling, samples=samples)


def responsibilities(mean: Tensor, log_var: Tensor, prior: Mixture) -> Tensor:
    """Optimal responsibilities of the components for a posterior, per latent position.

    softmax_k(log pi_k - KL(q, N_k)), the minimiser behind `kl_bound`. Returns [B, K, *S].
    """
    scores = _over_components(prior.log_weights, mean) - prior.kl_to_components(mean, log_var)
    return torch.softmax(scores, dim=1)


def mean_responsibilities(shares: Tensor) -> Tensor:
    """What share of all positions each component explains. shares: [B, K, *S]. Returns [K]."""
    return shares.movedim(1, -1).flatten(0, -2).mean(dim=0)


def effective_components(mean_share: Tensor) -> Tensor:
    """exp(entropy of the mean responsibilities): 1 for a collapsed mixture, K for a balanced one.

    mean_share: [K]. Returns a scalar.
    """
    return torch.exp(torch.special.entr(mean_share).sum())


def active_channels(mean: Tensor, threshold: float = 0.01) -> Tensor:
    """Share of the latent channels that tell positions apart: 0 where the posterior has collapsed.

    A channel is active if the variance of its posterior mean over all positions is above the
    threshold (Burda et al. 2016, section 5.2). mean: [B, C, *S]. Returns a scalar.
    """
    variance = mean.float().movedim(1, -1).flatten(0, -2).var(dim=0, correction=0)
    return (variance > threshold).float().mean()


def _raised(log_value: Tensor, floor: float) -> Tensor:
    """log(value + floor), finite with its gradient where value underflows."""
    log_floor = math.log(floor) if floor > 0 else -math.inf
    return torch.logaddexp(log_value, torch.full_like(log_value, log_floor))


def _over_components(log_weights: Tensor, like: Tensor) -> Tensor:
    """[K] -> [1, K, 1, ...] beside a [B, C, *S] tensor."""
    return log_weights.view(1, -1, *[1] * (like.dim() - 2))
