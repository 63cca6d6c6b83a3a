"""Pseudo-random numbers as a pure function of integers, the same on every platform and with every numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def hash64(*values: ArrayLike) -> NDArray[np.uint64]:
    """Mix integers into uniform 64-bit ones; the arguments broadcast against each other. Order of arguments matters.

    Each value goes through a step of SplitMix64 (Steele, Lea and Flood, 2014: "Fast splittable pseudorandom number
    generators"), the state so far added to it.
    """
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        for value in values:
            z: NDArray[np.uint64] = state + np.asarray(value).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = np.asarray(z ^ (z >> np.uint64(31)))
    return state
