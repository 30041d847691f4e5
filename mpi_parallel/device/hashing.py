"""Counter-based random bits: pure functions of what they are for, so no rank needs another rank's generator.

The mixing function is Chris Wellons' `lowbias32` (nullprogram.com/blog/2018/07/31), a bijection of 32-bit words found
by search for low avalanche bias. Works on NumPy and CuPy arrays of uint32, whose products wrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.interface import Array

MASK = 0xFFFFFFFF
ROUNDS = 6  # four make a good cipher of wide words (Luby and Rackoff 1988); halves of a few bits want some more
Keys = NDArray[np.uint32]


def mix(x: Array) -> Array:
    """Scramble every uint32 of an array."""
    x = (x ^ (x >> 16)) * x.dtype.type(0x7FEB352D)
    x = (x ^ (x >> 15)) * x.dtype.type(0x846CA68B)
    mixed: Array = x ^ (x >> 16)
    return mixed


def combine(a: Array, b: Array | np.uint32) -> Array:
    """Random bits for each pair (a, b) of uint32 arrays that broadcast (1-D at least: NumPy warns of scalars)."""
    return mix(mix(a) + b)


def combine_int(*words: int) -> int:
    """The same kind of hash for plain numbers, taken in turn: a uint32 from any count of words below 2^32."""
    state = 0
    for word in words:
        state = (state * 0x9E3779B1 + word + 0x7F4A7C15) & MASK
        state = ((state ^ (state >> 16)) * 0x7FEB352D) & MASK
        state = ((state ^ (state >> 15)) * 0x846CA68B) & MASK
        state ^= state >> 16
    return state


def combine_each(words: Sequence[int], last: NDArray[np.integer[Any]]) -> Keys:
    """`combine_int(*words, one)` for each one of `last`."""
    state = np.uint32(combine_int(*words) * 0x9E3779B1 + 0x7F4A7C15 & MASK)
    return mix(last.astype(np.uint32) + state)


def permute(places: NDArray[np.int64], n: int, key: int | Keys) -> NDArray[np.int64]:
    """The image of each place under a permutation of range(n) chosen by the key (uint32, one or one for each place).

    A Feistel network permutes the smallest 4^h >= n; images beyond n are permuted again until they fall inside (cycle
    walking, Black and Rogaway 2002). Needs no array of n. Places and keys broadcast.
    """
    half, rounds = half_of(n), round_keys(np.atleast_1d(np.asarray(key, np.uint32)))
    image = _feistel(places.astype(np.uint32), rounds, half)
    outside = np.nonzero(image >= n)
    while outside[0].size:
        theirs = [np.broadcast_to(one, image.shape)[outside] for one in rounds]
        image[outside] = _feistel(image[outside], theirs, half)
        beyond = image[outside] >= n
        outside = tuple(axis[beyond] for axis in outside)
    return image.astype(np.int64)


def half_of(n: int) -> int:
    """h of the smallest 4^h >= n, at least 1."""
    return max(1, (max(n - 1, 1).bit_length() + 1) // 2)


def round_keys(keys: Keys) -> list[Keys]:
    """The keys of each round, mixed here, where there may be one for many places."""
    return [mix(keys ^ number) for number in np.arange(1, ROUNDS + 1, dtype=np.uint32) * np.uint32(0x9E3779B9)]


def _feistel(words: Keys, rounds: Sequence[Keys], half: int) -> Keys:
    """Permute words below 4^half: in each round one half is changed by a hash of the other and the round's key."""
    mask = np.uint32((1 << half) - 1)
    left, right = words >> np.uint32(half), words & mask
    for key in rounds:
        left, right = right, left ^ (mix(right ^ key) & mask)
    return left << np.uint32(half) | right
