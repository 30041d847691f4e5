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
    """What is computed for so many rows, as a list of calls."""

    def __init__(self, model: Network, rows: Rows, compute: Compute, part: Part) -> None:
        """Write down what would be done for this part."""
        self._rows, self._keys, ws = rows, part.keys.copy(), model.workspace
        ws.reset()
        self._x, self._t = rows.gather(ws, part.index, part.keys)
        self._keyed = any(isinstance(layer, Dropout) for layer in model.training.layers)
        recorded = ws.kernels.recorded
        assert recorded is not None
        self.compute = recorded(lambda: compute(self._x, self._t, self._keys))

    def gather(self, part: Part) -> None:
        """Have the rows of this part, of the same size, where `compute` takes them from."""
        if self._keyed:
            self._keys[...] = part.keys
        self._rows.put(part.index, self._x, self._t, part.keys)


class Replays:
    """The passes that were written down, by the number of rows and whether gradients are added to those before."""

    def __init__(self, model: Network, rows: Rows, compute: Compute) -> None:
        self.model, self.rows, self.compute = model, rows, compute
        store = model.store
        # Else something else than rows, keys and weights changes from pass to pass, or it does not pay.
        compiled, constant = model.workspace.kernels.recorded is not None, store.factors is None and rows.in_place
        self.works = compiled and constant and store.size <= LARGEST
        self._passes: dict[tuple[int, bool], Pass | None] = {}  # None: one that was done once, and has found its memory
        self._remember()

    def of(self, part: Part) -> Pass | None:
        """The pass of as many rows; None where it is to be done call by call.

        What is in the workspace is lost; what is in the store is not.
        """
        model = self.model
        if (
            model.store.weights is not self._weights
            or model.store.merged is not self._merged
            or model.workspace.arena is not self._arena
        ):
            self._remember()
        kind = len(part.index), model.store.accumulating
        known = self._passes.get(kind)
        return known or self._another(part, kind)

    def _remember(self) -> None:
        """What the passes compute with; those that were written down for other arrays are dead."""
        self._passes = {}
        self._weights, self._merged, self._arena = (
            self.model.store.weights,
            self.model.store.merged,
            self.model.workspace.arena,
        )

    def _another(self, part: Part, kind: tuple[int, bool]) -> Pass | None:
        """A kind that comes for the second time finds all its memory in the workspace, and is written down."""
        self.model.workspace.reset()
        if self.model.workspace.arena is not self._arena:  # which had to grow for the pass before
            self._remember()
        if kind in self._passes and self.works:
            self._passes[kind] = self._written(part)
        elif len(self._passes) < SIZES:
            self._passes[kind] = None
        return self._passes.get(kind)

    def _written(self, part: Part) -> Pass | None:
        """The pass of this size, if it comes to the same, for which both are done."""
        store, ws = self.model.store, self.model.workspace
        before = store.merged.copy()
        ws.reset()
        self.compute(*self.rows.gather(ws, part.index, part.keys), part.keys)
        expected = store.merged.copy()
        store.merged[...] = before
        written = Pass(self.model, self.rows, self.compute, part)
        assert ws.settled is self._arena, "a pass takes the memory of the one before of its size"
        self._arena.fill(255)  # NaN, as whichever type it is seen
        if not store.accumulating:
            store.gradients.fill(np.nan)
        written.gather(part)
        written.compute()
        self.works = np.array_equal(store.merged.view(np.uint32), expected.view(np.uint32))
        store.merged[...] = before
        return written if self.works else None
