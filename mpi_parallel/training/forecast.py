"""The memory that a rank will need, from the sizes of things, before any of them is allocated.

Every line of the account follows what the named module allocates. What a program takes by itself (the interpreter, its
libraries, MPI's buffers) is not forecast but looked up: this process has them already.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from mpi_parallel.data_parallel.evaluation import EVALUATION_ROWS
from mpi_parallel.data_parallel.memory import available, resident
from mpi_parallel.model_parallel import backlog
from mpi_parallel.model_parallel.micro_batch import PER_STAGE
from mpi_parallel.model_parallel.placement import Cut, cuts_of, place
from mpi_parallel.model_parallel.schedules import SCHEDULES, most_held
from mpi_parallel.mpi.link import IN_FLIGHT
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.options import InputError
from mpi_parallel.result_merging.tree import Forest

FLOAT = 4  # bytes
Grid = tuple[int, int, int]  # data, pipe, tensor


@dataclass(frozen=True)
class Sizes:
    """What the memory of a run depends on, beside its grid."""

    widths: tuple[int, ...]  # features, hidden widths, classes
    batch_size: int = 256
    micro_batch: int | None = None
    optimizer: str = "adam"
    merge: str = "auto"
    schedule: str = "1f1b"
    dropout: bool = False
    narrow: bool = False  # products of numbers that are narrower than float32
    groups: int | None = None  # of a reproducible run
    training_rows: int = 0
    evaluation_rows: int = 0
    image_bytes: int = 0  # of one image, as it is in the file
    snapshots: int = 0  # that checkpoints are written from: the newest, and the best where there is validation
    ranks_of_node: int | None = None  # by default all


@dataclass(frozen=True)
class Forecast:
    """Bytes of one rank; what several ranks share counts in parts, as in a proportional set size."""

    weights: int
    gradients: int
    moments: int  # of the optimizer
    merging: int
    activations: int
    rows: int
    snapshots: int  # for checkpoints

    @property
    def total(self) -> int:
        """All of it, without the program."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        """412 MiB: weights 100, gradients 100, ..."""
        parts = ", ".join(f"{field.name} {_mib(getattr(self, field.name))}" for field in fields(self))
        return f"{_mib(self.total)} MiB ({parts})"


def forecast(sizes: Sizes, grid: Grid) -> Forecast:
    """The memory of the rank that needs most. Raises InputError where the network cannot be cut like that."""
    stages = range(grid[1])
    return max((of_stage(sizes, grid, stage) for stage in stages), key=lambda one: one.total)


def of_stage(sizes: Sizes, grid: Grid, stage: int) -> Forecast:
    """The memory of a rank of this stage, of the first and so the largest tensor slice."""
    _, pipe, tensor = grid
    slices = cuts_of(sizes.widths, tensor, 0)
    shares = place(sizes.widths, pipe, tensor, sizes.groups is not None)[stage]
    cuts = [slices[share.number].narrowed(share) for share in shares]
    size = FLOAT * sum(len(cut.rows) * len(cut.columns) + len(cut.bias) for cut in cuts)
    weights, moments, merging = _merged(sizes, grid, size)
    if tensor > 1:  # MPI's, where it forms the largest of the sums over slices
        batch = -(-min(sizes.batch_size, sizes.training_rows or sizes.batch_size) // grid[0])
        merging += 2 * FLOAT * max(EVALUATION_ROWS, sizes.micro_batch or batch) * max(sizes.widths[1:])
    return Forecast(
        weights + (size if sizes.narrow else 0), size, moments, merging, _activations(sizes, grid, cuts, stage),
        _rows(sizes, grid, stage), sizes.snapshots * size * (1 + len(RULES[sizes.optimizer].names)) // grid[0],
    )  # fmt: skip


def _merged(sizes: Sizes, grid: Grid, size: int) -> tuple[int, int, int]:
    """Weights, the optimizer's state and what the merger has beside, for a store of so many bytes."""
    data = grid[0]
    state = len(RULES[sizes.optimizer].names) + (sizes.optimizer == "lamb")
    merging = 0
    if sizes.groups:  # subtrees of this rank, and what the plainest merger gets of the others
        forest = Forest(sizes.groups, data)
        merging = size * (forest.waiting(0) + (forest.rows if data == 1 or sizes.merge == "exact" else 0))
    if data == 1 or sizes.merge in ("flat", "buckets", "exact"):
        return size, state * size, merging
    # The owners of a slice keep its state alone; auto may take any, but for stores of this size it takes the window.
    near = min(data, sizes.ranks_of_node or data)
    if sizes.merge == "sharded":
        return size, state * size // data, merging + size // data + size  # MPI's, where it forms the sums
    return size // near, state * size // near, merging


def _activations(sizes: Sizes, grid: Grid, cuts: Sequence[Cut], stage: int) -> int:
    """Arenas of the workspace, messages, and rows whose weight gradients are taken late."""
    data, pipe, tensor = grid
    batch = -(-min(sizes.batch_size, sizes.training_rows or sizes.batch_size) // data)
    scored = min(EVALUATION_ROWS, -(-sizes.evaluation_rows // data))
    copies = 2 if sizes.dropout else 1
    first = sizes.widths[0] if stage == 0 else 0
    forward = first + sum(copies * len(cut.columns) + (cut.width_out + cut.fan_in) * _shared(cut) for cut in cuts)
    backward = sum(
        copies * len(cut.rows) * (cut.number > 0) + (cut.gradient_in + len(cut.columns)) * _shared(cut) for cut in cuts
    )
    score = scored * forward
    if pipe == 1:
        rows = min(batch, sizes.micro_batch or batch)
        if sizes.groups and not sizes.micro_batch:
            rows = -(-sizes.batch_size // sizes.groups)
        return FLOAT * max(rows * (forward + backward), score)
    rows = sizes.micro_batch or (
        -(-sizes.batch_size // sizes.groups) if sizes.groups else max(1, -(-batch // (PER_STAGE * pipe)))
    )
    count = -(-batch // rows)
    held = most_held(SCHEDULES[sizes.schedule](pipe, stage, count))
    last = stage == pipe - 1
    into, out = (0 if stage == 0 else cuts[0].width_in), (0 if last else cuts[-1].width_out)
    back = 0 if last else cuts[-1].gradient_out
    arenas = max(held * rows * (forward + back), score + (held - 1) * rows * (forward + back)) + rows * backward
    inputs = rows * into * (held + 1) + max(0, scored - rows) * into * 2
    outboxes = IN_FLIGHT * (max(rows, scored) * out + rows * (0 if stage == 0 else cuts[0].gradient_in))
    together = 1 if sizes.groups or tensor > 1 else max(1, backlog.ROWS // rows)
    late = together * rows * sum(cut.fan_in + len(cut.columns) for cut in cuts) if together > 1 else 0
    return FLOAT * (arenas + inputs + outboxes + late)


def _shared(cut: Cut) -> bool:
    """Whether stages share the layer, and so join arrays."""
    return cut.columns != cut.slice


def _rows(sizes: Sizes, grid: Grid, stage: int) -> int:
    """Images on the first stage, labels on all; ranks that look at the same have one copy of training rows together."""
    data, pipe, tensor = grid
    each = FLOAT + (sizes.image_bytes if stage == 0 else 0)
    copies = tensor * (1 if stage == 0 else pipe - 1)
    return each * (-(-sizes.training_rows // data) // copies + -(-sizes.evaluation_rows // data))


def limit_of(asked: int | None, ranks_of_node: int) -> tuple[int, str]:
    """Bytes that this rank may still take, and who says so: --rank-memory, ulimit -v, or what the node has left.

    Without the program, which is there already.
    """
    if asked is not None:
        return asked - resident(), "--rank-memory"
    limits = [(available() // ranks_of_node, "what this node has available")]
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        limits.append((space - _address_space(), "the limit of its address space (ulimit -v)"))
    return min(limits)


def check(need: Forecast, limit: int, whose: str, proposal: str) -> None:
    """Raises InputError where a rank needs more than the limit."""
    if need.total > limit:
        raise InputError(
            f"a rank needs {need} beside the program, and {whose} leaves {_mib(max(0, limit))} MiB: {proposal}"
        )


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _mib(count: int) -> str:
    return f"{count / 2**20:,.{int(count < 10 * 2**20)}f}"
