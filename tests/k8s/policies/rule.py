"""The decorator that makes a function a rule, and the list that it fills."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from built import Manifest

__all__ = ["RULES", "Rule", "rule"]

Rule = Callable[[list[Manifest]], Iterator[str]]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check
