"""Random integers as a pure function of two numbers, the same under every version of NumPy."""

from __future__ import annotations

import numpy as np

__all__ = ["Draws"]

_AT_ONCE = 64  # words


class Draws:
    """Philox (Salmon et al. 2011) keyed by (seed, number), both below 2^64.

    Taken from the raw words: NumPy promises those for all versions, `Generator`'s methods not. A
    bound's bias is at most bound / 2^32, beyond any count of samples.
    """

    def __init__(self, seed: int, number: int) -> None:
        self._philox = np.random.Philox(key=np.array([seed, number], np.uint64))
        self._ready: list[int] = []

    def below(self, bound: int) -> int:
        """Uniform in 0 to bound - 1."""
        if not self._ready:
            self._ready = self._philox.random_raw(_AT_ONCE).tolist()
        return self._ready.pop() * bound >> 64

    def chance(self, probability: float) -> bool:
        return self.below(2**53) < probability * 2**53

    def fractions(self, *shape: int) -> np.ndarray:
        """uint64 of `shape`, uniform below 2^32."""
        words = self._philox.random_raw(int(np.prod(shape)))
        return (words >> np.uint64(32)).reshape(shape)
