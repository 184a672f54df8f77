"""A real Ray head with token authentication, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.head import Head, head_node


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with head_node(cpus=1, nodes=1) as started:
        yield started
