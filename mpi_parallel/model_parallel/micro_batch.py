"""Micro-batches: the rows of a step that go through a pipeline together, cut so that products are not too small.

    a batch of 10 rows in 2 groups, micro-batches of 3 rows

    group 0   [ 0 1 2 ] [ 3 4 ]        the first of a group clears the gradients,
    group 1   [ 5 6 7 ] [ 8 9 ]        the last one completes them

Gradients of a group are complete, and collected, before the next group's begin; without groups a batch is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device import Array
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.mpi.link import Expected
from mpi_parallel.nn.layers import Ready

PER_STAGE = 4  # micro-batches a stage, unless told: little time is idle, and products are not too small yet


class Batch(Protocol):
    """Rows of this step, alike on all stages (data_parallel.loader.Batch)."""

    index: Array
    keys: Array

    def groups(self) -> Iterator[Any]: ...

    def parts(self, size: int | None) -> Iterator[Any]: ...


class Rows(Protocol):
    """Where images and labels are (data_parallel.rows.Rows)."""

    brought: bool

    def __len__(self) -> int: ...

    def places(self, span: range, most: int) -> NDArray[np.int64]: ...

    def bring(self, count: int) -> None: ...

    def rewind(self, epoch: int = 0) -> None: ...

    def gather(self, ws: Workspace, index: Array, keys: Array | None = None) -> tuple[Array, Array]: ...

    def labels_of(self, ws: Workspace, index: Array) -> Array: ...


@dataclass
class MicroBatch:
    """Rows that go through the pipeline together, and what this stage holds of them between forward and backward."""

    rows: Batch
    first: bool = True  # of its group
    group_rows: int | None = None  # of the last of a group: the rows of the whole group
    input: Expected | None = None
    gradient: Callable[[], Array] | None = None  # of the output: of the loss, or what the stage behind sends
    backward: Callable[[Array, Ready], Array] | None = None


def micro_batches(batch: Batch, rows: int | None, stages: int, grouped: bool) -> Iterator[MicroBatch]:
    """All of a step, in their order, of so many `rows` or fewer each.

    Where that is None they are whole groups in a `grouped` run, else an equal share for each of PER_STAGE a stage.
    """
    if rows is None and not grouped:
        rows = -(-len(batch.index) // (PER_STAGE * stages)) or None
    for group in batch.groups():
        parts = list(group.parts(rows))
        for part in parts:
            last = part is parts[-1]
            yield MicroBatch(part, part is parts[0], len(group.index) if last else None)
