"""Mergers where the model itself is split: gradients are merged along the data axis, what is told across the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.process_grid import ProcessGrid
from mpi_parallel.nn.store import Parameter
from mpi_parallel.result_merging.merger import Merger, in_order
from mpi_parallel.result_merging.metrics import Totals


class Across(Merger):
    """Any merger on `grid.data`, of this rank's own part of the weights; totals and norm are those of the whole model.

    Only ranks of the last stage know a loss, and any rank may be asked to stop or find its gradient not finite.
    """

    def __init__(self, merger: Merger, grid: ProcessGrid) -> None:
        super().__init__(merger.store, merger.comm)
        self.merger, self.name, self.owned = merger, merger.name, merger.owned
        self.overlaps = merger.overlaps
        self.model, self.speaks = grid.model.on_host(), grid.speaks
        # Tensor ranks have slices of the same parameters, of which stages may share one; not all have all biases.
        self._rows = [2 * int(name[1:]) + (name[0] == "b") for name in self.store.parameters]
        self._all_rows = 1 + self.model.maximum(max(self._rows))
        self._terms = np.zeros(self.model.maximum(len(self.store.parameters)), np.float64)  # most have but one square

    def ready(self, parameters: Sequence[Parameter]) -> None:
        self.merger.ready(parameters)

    def collect(self) -> None:
        self.merger.collect()

    def merge(self) -> Totals:
        """Merge the data axis, then let every rank of the model know of the others."""
        mine = self.merger.merge()
        told = (mine.loss, mine.correct, mine.count) if self.speaks else (0.0, 0, 0)
        sums = np.array([*told, mine.stop, mine.save, 0.0 if mine.finite else math.nan], np.float64)
        self.model.sum(sums)
        return Totals.of(sums)

    def norm(self) -> float:
        """From the squares of all parts; each weight is in one of them."""
        return math.sqrt(in_order(self.squares()))

    def squares(self) -> list[float]:
        """Those of all ranks of the model, the last stage's first: in the order of the store of a whole network."""
        mine = self.merger.squares()
        self._terms[: len(mine)] = mine
        terms: list[float] = self.model.gather(self._terms)[::-1].ravel().tolist()
        return terms

    def total(self, sums: NDArray[np.float64]) -> None:
        """Sum numbers of this rank's parameters (P, M), in place, over the owners of all slices of each parameter."""
        self.merger.total(sums)
        table = np.zeros((self._all_rows, *sums.shape[1:]), np.float64)
        table[self._rows] = sums
        self.model.sum(table)
        sums[...] = table[self._rows]

    def publish(self) -> None:
        self.merger.publish()

    def travels(self) -> Iterable[tuple[str, float, float]]:
        return self.merger.travels()

    def close(self) -> None:
        self.merger.close()
