"""How many trials fit a cluster: none may wait for another's resources."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune.capacity import CapacityError, trials_at_once
from tune.config import ResourcesConfig


def resources(**changed: object) -> ResourcesConfig:
    return ResourcesConfig.model_validate(changed)


@pytest.mark.parametrize(
    ("nodes", "took", "expected"),
    [
        ([{"CPU": 2}], {}, 2),
        ([{"CPU": 3}, {"CPU": 3}], {"cpus_per_worker": 2}, 2),  # not three: one CPU lies idle
        ([{"CPU": 3}, {"CPU": 1}], {"workers": 2}, 2),
        ([{"CPU": 8, "GPU": 1}], {"gpus_per_worker": 0.25}, 4),
        ([{"CPU": 8, "GPU": 2}], {"gpus_per_worker": 0.7}, 2),  # not 2.8: 0.3 on each is no place
        ([{"CPU": 8, "GPU": 1}], {"gpus_per_worker": 0.1}, 8),
        ([{"CPU": 64, "GPU": 8}], {"workers": 4, "gpus_per_worker": 1}, 2),
        ([{}, {"CPU": 4}], {"most_at_once": 3}, 3),
    ],
)
def test_only_whole_places_count(nodes, took, expected):
    assert trials_at_once(nodes, resources(**took)) == expected


def test_a_cluster_without_a_place_is_refused_with_what_it_has():
    with pytest.raises(CapacityError, match=r"2 x \(1 CPU, 1 GPU\).*8 CPU, 1 GPU"):
        trials_at_once([{"CPU": 8, "GPU": 1}], resources(workers=2, gpus_per_worker=1))


@given(
    cpus=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    workers=st.integers(1, 4),
    each=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_all_trials_at_once_can_be_placed_on_the_nodes(cpus, workers, each):
    took = resources(workers=workers, cpus_per_worker=each)
    try:
        trials = trials_at_once([{"CPU": n} for n in cpus], took)
    except CapacityError:
        trials = 0
    free = list(map(float, cpus))
    for _ in range(trials * workers):
        node = next(i for i, left in enumerate(free) if left >= each)
        free[node] -= each
    assert sum(int(left / each) for left in free) < workers  # and no further one
