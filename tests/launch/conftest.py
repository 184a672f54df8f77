"""A small store and an undisturbed run for all tests, and a Ray head for those of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shell import whole
from small_run import store

from benchmarks.head import Head, head_node

__all__ = ["head", "store", "whole"]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Of two nodes, with token authentication."""
    with head_node(cpus=1, nodes=1) as started:
        yield started
