"""Random integers as a pure function of two numbers, the same under every version of NumPy."""

from __future__ import annotations

import math
import threading

import numpy as np

__all__ = ["Draws"]

_AT_ONCE = 64  # words
_BLOCK = 4  # words that one value of Philox's counter gives


class Draws:
    """Philox (Salmon et al. 2011) keyed by (seed, number), both below 2^64.

    Taken from the raw words: NumPy promises those for all versions, `Generator`'s methods not. A
    bound's bias is at most bound / 2^32, beyond any count of samples.
    """

    def __init__(self, seed: int, number: int) -> None:
        self._key = np.array([seed, number], np.uint64)
        self._blocks = 0
        self._ready: list[int] = []

    def below(self, bound: int) -> int:
        """Uniform in 0 to bound - 1."""
        if not self._ready:
            self._ready = self._words(_AT_ONCE).tolist()
        return self._ready.pop() * bound >> 64

    def chance(self, probability: float) -> bool:
        return self.below(2**53) < probability * 2**53

    def fractions(self, *shape: int) -> np.ndarray:
        """uint64 of `shape`, uniform below 2^32."""
        return (self._words(math.prod(shape)) >> np.uint64(32)).reshape(shape)

    def _words(self, count: int) -> np.ndarray:
        """The next whole blocks of words that hold `count`, and of these the first `count`."""
        philox = _THREAD.philox
        philox.state = {
            "bit_generator": "Philox",
            "state": {"counter": np.array([self._blocks, 0, 0, 0], np.uint64), "key": self._key},
            "buffer": np.zeros(_BLOCK, np.uint64),
            "buffer_pos": _BLOCK,
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._blocks += -(-count // _BLOCK)
        words: np.ndarray = philox.random_raw(count)
        return words


class _Thread(threading.local):
    """A generator for each thread: to make one asks the system for entropy, which takes longer
    than all that is drawn here."""

    def __init__(self) -> None:
        self.philox = np.random.Philox()


_THREAD = _Thread()
