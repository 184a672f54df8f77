"""Training on patches whose latent follows a known mixture finds its components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tiny import SPACING_MM, tiny_config

from pmg.cosine import CosineSkip
from pmg.training import Training, build_modules, torch_engines
from pmg.window import window_of
from storage.stream import Batch

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[-1.0, 0.2, 0.0, 0.0], [0.2, -0.3, 0.1, 0.0], [0.9, 0.0, -0.2, 0.1]])
STDS = np.array([[0.1, 0.1, 0.1, 0.1], [0.2, 0.1, 0.1, 0.15], [0.1, 0.15, 0.1, 0.1]])

BATCH = 8
CONFIG = tiny_config(
    # A linear window: HU are then hundreds of intensities.
    data={"low_hu": -100, "high_hu": 100, "centre_hu": 0, "scale_hu": 1e6},
    model={"position": False},
    prior={"components": 3, "fit_step": 20, "reseed_every": 25},
    loss={"lambda_kl": 0.1, "lambda_cycle_kl": 0.1},
    optim={"lr": 1e-3, "schedule": "constant", "weight_decay": 0.0},
    train={"batch": BATCH},
)


def known_batch(first_sample: int) -> Batch:
    """Patches of the inverse cosine transform of draws from the mixture, one a latent position."""
    rng = np.random.default_rng(first_sample)
    inverse, window = CosineSkip(4, 2, 2), window_of(CONFIG.data)
    hu = []
    for _ in range(2):
        chosen = rng.choice(3, (BATCH, 8, 8), p=WEIGHTS)
        z = rng.normal(MEANS[chosen], STDS[chosen])
        x = inverse.synthesise(torch.as_tensor(z, dtype=torch.float32).movedim(-1, 1))
        hu.append(window.to_hu(x).round().numpy().astype(np.int16))
    return Batch(
        hu1=hu[0],
        hu2=hu[1],
        position_mm=np.zeros((BATCH, 2, 3), np.float32),
        samples=np.arange(first_sample, first_sample + BATCH),
        spacing_mm=SPACING_MM,
        volume_ids=(("a", "b"),) * BATCH,
    )


@pytest.mark.slow
def test_training_recovers_the_components_of_a_known_mixture_up_to_their_order():
    translator, critic = build_modules(CONFIG)
    training = Training(
        CONFIG, *torch_engines(translator, critic, CONFIG), device=torch.device("cpu")
    )
    for step in range(60):
        terms = training.advance(known_batch(BATCH * step)).terms
    mixture = translator.prior.mixture()
    mean = mixture.mean.detach().double().numpy()
    _, order = linear_sum_assignment(np.linalg.norm(MEANS[:, None] - mean, axis=2))
    np.testing.assert_allclose(mean[order], MEANS, atol=0.1)
    std = (0.5 * mixture.log_var).exp().detach().numpy()[order]
    assert 0.8 < (std / STDS).min() <= (std / STDS).max() < 1.5
    weights = mixture.log_weights.exp().detach().numpy()[order]
    np.testing.assert_allclose(weights, WEIGHTS, atol=0.05)

    entropy = -(WEIGHTS * np.log(WEIGHTS)).sum()
    assert abs(terms["prior.effective_components"].item() - np.exp(entropy)) < 0.2
    shares = [terms[f"prior.responsibility{k + 1}"].item() for k in order]
    np.testing.assert_allclose(shares, WEIGHTS, atol=0.07)
    assert terms["latent.active_channels"] == 1
