"""Counter-based random bits: pure functions of what they are for, so no rank needs another rank's generator.

The mixing function is Chris Wellons' `lowbias32` (nullprogram.com/blog/2018/07/31), a bijection of 32-bit words found
by search for low avalanche bias. Works on NumPy and CuPy arrays of uint32, whose products wrap.
"""

from __future__ import annotations

from mpi_parallel.device.interface import Array

MASK = 0xFFFFFFFF


def mix(x: Array) -> Array:
    """Scramble every uint32 of an array."""
    x = (x ^ (x >> 16)) * x.dtype.type(0x7FEB352D)
    x = (x ^ (x >> 15)) * x.dtype.type(0x846CA68B)
    mixed: Array = x ^ (x >> 16)
    return mixed


def combine(a: Array, b: Array) -> Array:
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
