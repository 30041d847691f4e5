"""Standardisation: the features' mean and deviation over the training rows, in one parallel pass.

Every shard gives its own moments and the shards are merged in their order, so the result does not depend on the ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError

Values = NDArray[np.float64]
LARGE = np.errstate(over="ignore", invalid="ignore")  # numbers, whose squares overflow: told in the end
SLAB = 4096  # features that are exchanged at a time: bounds the memory of wide images


@dataclass(frozen=True)
class Scaler:
    """x = (raw - mean) / std; both () or (features,), float64, std without zeros."""

    mean: Values
    std: Values

    @classmethod
    def of(cls, mean: Any, std: Any) -> Scaler:
        """A scaler for these moments; a constant feature (std 0) is shifted only, as scikit-learn does."""
        deviation = np.asarray(std, np.float64)
        return cls(np.asarray(mean, np.float64).reshape(-1), np.where(deviation == 0, 1.0, deviation).reshape(-1))


@LARGE
def moments(rows: NDArray[Any]) -> tuple[Values, Values]:
    """Mean and sum of squared deviations (features,) of rows (n, features), in float64."""
    values = rows.astype(np.float64)
    origin = values[0].copy()  # taken off first, so that a constant feature deviates by nothing rather than by rounding
    values -= origin
    mean: Values = values.mean(axis=0)
    values -= mean
    return origin + mean, np.einsum("nf,nf->f", values, values)


def moments_of_pieces(pieces: Iterable[NDArray[Any]]) -> tuple[Values, Values]:
    """The moments of rows that come piece by piece, none of them empty."""
    mean, squares, count = np.zeros(1), np.zeros(1), 0
    for piece in pieces:
        mean, squares = _together(count, mean, squares, len(piece), *moments(piece))
        count += len(piece)
    return mean, squares


def standardise(
    shards: Mapping[int, NDArray[Any] | tuple[Values, Values]], lengths: list[int], features: int, comm: Communicator
) -> Scaler:
    """The per-feature scaler of the training rows, from each rank's shards by their number.

    A shard is given as its rows (n, features) or as their moments. `lengths` are the rows of all shards.
    Merged pairwise as Chan, Golub and LeVeque (1979) do, without loss of precision. Raises InputError where float64
    does not hold the moments.
    """
    slabs = [slice(start, min(start + SLAB, features)) for start in range(0, features, SLAB)]
    merged = [_merge(shards, lengths, slab, comm) for slab in slabs]
    mean, squares = (np.concatenate(parts) for parts in zip(*merged, strict=True))
    if not np.isfinite(squares).all():
        feature = int(np.flatnonzero(~np.isfinite(squares))[0])
        raise InputError(
            f"the training images deviate by more than float64 holds the square of, first in feature {feature}: "
            "numbers beyond 1e150 cannot be standardised"
        )
    return Scaler.of(mean, np.sqrt(squares / sum(lengths)))


def _merge(
    shards: Mapping[int, NDArray[Any] | tuple[Values, Values]], lengths: list[int], slab: slice, comm: Communicator
) -> tuple[Values, Values]:
    table = np.zeros((len(lengths), 2, slab.stop - slab.start))
    for number, rows in shards.items():
        if isinstance(rows, tuple):
            table[number] = [values[slab] for values in rows]
        elif len(rows):
            table[number] = moments(rows[:, slab])
    comm.sum(table)  # each shard's entry comes from one rank, the others add zeros: exact
    count, mean, squares = 0, np.zeros(table.shape[2]), np.zeros(table.shape[2])
    for length, (shard_mean, shard_squares) in zip(lengths, table, strict=True):
        if length:
            mean, squares = _together(count, mean, squares, length, shard_mean, shard_squares)
            count += length
    return mean, squares


@LARGE
def _together(
    n_a: int, mean_a: Values, squares_a: Values, n_b: int, mean_b: Values, squares_b: Values
) -> tuple[Values, Values]:
    """Mean and sum of squared deviations of two sets of rows taken together."""
    delta, n = mean_b - mean_a, n_a + n_b
    return mean_a + delta * (n_b / n), squares_a + squares_b + delta * delta * (n_a * n_b / n)
