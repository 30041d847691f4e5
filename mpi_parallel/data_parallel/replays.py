"""Passes of batches over the cores, replayed: what a rank computes for a batch of a size that it has met before.

Between two kernels a core runs some hundred lines of Python whose objects the kernels have driven out of its caches. A
step of the default network calls fifteen kernels, and took a sixteenth longer for it. But the calls of a batch are
those of the one before of its size, on the same addresses (device/workspace.py), so they are written down once and made
from the list. It is what a GPU does with a graph (training/captured.py), and `--no-graphs` does without both.

A list has the calls of compiled kernels alone. That a pass makes no others is tried before a list is used: its result
has to be, bit for bit, that of the pass itself, with nothing in memory that could be left over from that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.device import Array
from mpi_parallel.device.interface import Work
from mpi_parallel.nn.layers import Dropout
from mpi_parallel.nn.mlp import Network

LARGEST = 2**22  # weights of a network that is worth it: of larger ones a step takes so long that nobody notices
SIZES = 16  # of batches that are kept


class Part(Protocol):
    """Rows of a step that are computed together (loader.Batch)."""

    index: Array
    keys: Array


# What a pass does with the operands, labels and keys of its rows, forward and backward.
Compute = Callable[[Array, Array, Array], None]


class Pass:
    """What is computed for so many rows, as two lists of calls: those that gather the rows, and those behind."""

    def __init__(self, model: Network, rows: Rows, compute: Compute, part: Part) -> None:
        """Write down what would be done for this part."""
        ws, self.index, self.keys = model.workspace, part.index.copy(), part.keys.copy()
        assert ws.kernels.recorded is not None
        ws.reset()
        gathered: list[tuple[Array, Array]] = []
        self.gather = ws.kernels.recorded(lambda: gathered.append(rows.gather(ws, self.index, self.keys)))
        self.compute = ws.kernels.recorded(lambda: compute(*gathered[0], self.keys))


class Replays:
    """The passes that were written down, by the number of rows and whether gradients are added to those before."""

    def __init__(self, model: Network, rows: Rows, compute: Compute) -> None:
        self.model, self.store, self.rows, self.compute = model, model.store, rows, compute
        compiled = model.workspace.kernels.recorded is not None
        # Else something changes from pass to pass beside rows, keys and weights, or it does not pay.
        self.works = compiled and self.store.factors is None and rows.in_place and self.store.size <= LARGEST
        self._keyed = rows.augment is not None or any(isinstance(layer, Dropout) for layer in model.training.layers)
        self._passes: dict[tuple[int, bool], Pass | None] = {}  # None: one that was done once, and has found its memory
        self._remember()

    def gather(self, part: Part) -> Work | None:
        """Gather the rows of this part: what is then to be done, or None where all is to be done call by call.

        What is in the workspace is lost; what is in the store is not.
        """
        store = self.store
        known = self._passes.get((len(part.index), store.accumulating))
        if (
            known is None
            or store.weights is not self._weights
            or store.merged is not self._merged
            or self.model.workspace.arena is not self._arena
        ):
            known = self._another(part)
            if known is None:
                return None
        known.index[...] = part.index
        if self._keyed:
            known.keys[...] = part.keys
        known.gather()
        return known.compute

    def _remember(self) -> None:
        """What the passes compute with; those that were written down for other arrays are dead."""
        self._passes = {}
        self._weights, self._merged = self.store.weights, self.store.merged
        self._arena = self.model.workspace.arena

    def _another(self, part: Part) -> Pass | None:
        """A kind that comes for the second time finds all its memory in the workspace, and is written down."""
        store, ws = self.store, self.model.workspace
        ws.reset()  # which has the arena grow if it did not suffice for the pass before
        if not (store.weights is self._weights and store.merged is self._merged and ws.arena is self._arena):
            self._remember()
        kind = len(part.index), store.accumulating
        if kind in self._passes and self.works:
            self._passes[kind] = self._written(part)
        elif len(self._passes) < SIZES:
            self._passes[kind] = None
        return self._passes.get(kind)

    def _written(self, part: Part) -> Pass | None:
        """The pass of this size, if it comes to the same, for which both are done."""
        store, ws = self.store, self.model.workspace
        before = store.merged.copy()
        self.compute(*self.rows.gather(ws, part.index, part.keys), part.keys)
        expected = store.merged.copy()
        written = Pass(self.model, self.rows, self.compute, part)
        assert ws.settled is self._arena, "a pass takes the memory of the one before of its size"
        store.merged[...] = before
        self._arena.fill(255)  # NaN, as whichever type it is seen
        if not store.accumulating:
            store.gradients.fill(np.nan)
        written.gather()
        written.compute()
        self.works = np.array_equal(store.merged.view(np.uint32), expected.view(np.uint32))
        store.merged[...] = before
        return written if self.works else None
