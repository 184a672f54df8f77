"""Mutants of good series: each is read or refused by name, and none stops the reader."""

import fuzz
import numpy as np
import pytest
from make_series import a_volume

from storage.bounds import MAX_SECONDS
from storage.series import find_sources, read_source

pytestmark = pytest.mark.slow

MUTANTS = 600


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return folder, fuzz.fuzz(MUTANTS, seed=20240, folder=folder)


def test_no_mutant_stops_the_process_that_reads_it(run):
    _, outcome = run
    assert outcome.returncode == 0, f"while reading {outcome.in_work}: {outcome.errors}"
    assert outcome.in_work == ""


def test_every_mutant_is_read_or_refused_with_its_path_and_a_reason(run):
    folder, outcome = run
    mutants = sorted((folder / "mutants").iterdir())
    assert len(mutants) == MUTANTS
    spoken_of = [*outcome.read, *outcome.refused]
    for mutant in mutants:
        assert any(str(mutant) in path for path in spoken_of), mutant
    refused = [(path, reason) for path, some in outcome.refused.items() for reason in some]
    assert len(refused) > MUTANTS / 4
    for path, reason in refused:
        assert path.startswith(str(folder / "mutants"))
        assert path in reason or path.endswith(".dcm")
        assert len(reason) < 1000
        assert f"{MAX_SECONDS:g} s" not in reason
    assert any(path.startswith(str(folder / "mutants")) for path in outcome.read)


def test_the_good_series_next_to_them_are_all_read(run):
    folder, outcome = run
    good = sorted((folder / "good").iterdir())
    assert len(good) == len(fuzz.SINGLE) + len(fuzz.MULTI)
    assert all(outcome.read[str(one)] == list(fuzz.SHAPE) for one in good)
    sources, refusals = find_sources(folder / "good")
    assert (len(sources), refusals) == (len(good), [])
    for source in sources:
        hu = read_source(source)[0].hu
        if "lossy" not in source.files[0].parent.name:
            np.testing.assert_array_equal(hu, a_volume(shape=fuzz.SHAPE).hu)
