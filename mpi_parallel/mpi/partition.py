"""Who owns what: the two ways in which everything here is divided among ranks."""

from __future__ import annotations

LINE = 16  # float32 numbers in 64 bytes


def block(n: int, size: int, rank: int) -> range:
    """The contiguous share of range(n) of `rank` among `size`; shares differ by at most one, the longer ones first."""
    quotient, remainder = divmod(n, size)
    start = rank * quotient + min(rank, remainder)
    return range(start, start + quotient + (rank < remainder))


def share(n: int, size: int, rank: int) -> slice:
    """As `block`, for float32 numbers of which each rank computes a part: no two ranks write to one cache line."""
    lines = block(-(-n // LINE), size, rank)
    return slice(min(lines.start * LINE, n), min(lines.stop * LINE, n))


def dealt(n: int, size: int, rank: int) -> range:
    """The share of range(n) that `rank` gets when the numbers are dealt like cards."""
    return range(rank, n, size)
