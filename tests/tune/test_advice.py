"""Advice on K: on values whose order is known, and on data of a known number of components."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pmg.mixture import fit_mixture
from tune.advice import Observed, advise

RNG = np.random.default_rng(0)


def observed(centres: dict[int, float], count: int, noise: float = 0.02) -> list[Observed]:
    return [
        Observed(k, centre + noise * RNG.standard_normal(), effective=min(k, 3.0))
        for k, centre in centres.items()
        for _ in range(count)
    ]


def test_the_smallest_number_that_is_not_told_from_the_best_is_advised():
    advice = advise(observed({1: 2.0, 2: 1.5, 4: 1.0, 8: 1.0}, 10))
    assert advice.components == 4
    assert advice.same == (4, 8)
    assert "4 and 8 do not differ" in advice.text
    assert "1 and 2 are worse" in advice.text
    assert [row.effective for row in advice.rows] == [1, 2, 3, 3]


def test_what_is_to_be_large_is_compared_the_other_way_round():
    advice = advise(observed({1: 2.0, 2: 1.5, 4: 1.0}, 10), minimize=False)
    assert (advice.components, advice.same) == (1, (1,))


def test_values_that_do_not_differ_are_not_told_apart():
    advice = advise(observed({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 6))
    assert advice.same == (1, 2, 4, 8)


def test_too_few_trainings_say_nothing():
    few = advise(observed({2: 1.0, 4: 0.2}, 2))
    assert few.components is None
    assert few.silent == (2, 4)
    assert "nothing is known" in few.text
    some = advise([*observed({2: 1.0}, 6), *observed({4: 0.1}, 1)])
    assert (some.components, some.silent) == (None, (4,))  # 2 has nothing to be compared with


def test_four_trainings_each_are_too_few_for_a_test_that_could_tell():
    assert advise(observed({1: 9.0, 2: 1.0}, 4)).components is None
    assert advise(observed({1: 9.0, 2: 1.0}, 5)).same == (2,)


def _drawn(components: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Points on a circle of radius 6, one normal of deviation 1 a component."""
    angles = 2 * torch.pi * torch.arange(components) / components
    centres = 6 * torch.stack([angles.cos(), angles.sin()], dim=1)
    which = torch.randint(components, (count,), generator=generator)
    return centres[which] + torch.randn(count, 2, generator=generator)


@pytest.mark.parametrize("true", [2, 3, 5])
def test_the_number_of_components_of_a_known_mixture_is_advised(true):
    """The objective: negative log-likelihood of points that were not fitted, by 8 fits a K."""
    generator = torch.Generator().manual_seed(true)
    found = []
    for k in (1, 2, 3, 4, 5, 8):
        for seed in range(8):
            fitted = fit_mixture(_drawn(true, 400, generator), k, seed=seed)
            held = _drawn(true, 2000, generator)
            value = -float(_log_likelihood(held, fitted).mean())
            share = fitted.log_weights.exp()
            effective = float(torch.exp(-(share * fitted.log_weights).sum()))
            found.append(Observed(k, value, effective))
    advice = advise(found)
    assert true in advice.same
    assert advice.components == true
    assert all(k >= true for k in advice.same)


def _log_likelihood(x: torch.Tensor, mixture) -> torch.Tensor:
    return mixture.log_prob(x.T[None])[0]
