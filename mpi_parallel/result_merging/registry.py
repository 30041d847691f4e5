"""The mergers by the names that --merge has for them: the reference, then the most promising ones first."""

from __future__ import annotations

from collections.abc import Callable

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.result_merging.buckets import Buckets
from mpi_parallel.result_merging.exact import Canonical, Exact, ExactShares
from mpi_parallel.result_merging.exact_window import ExactWindow
from mpi_parallel.result_merging.flat import Flat
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.sharded import Sharded
from mpi_parallel.result_merging.window import Window

MERGERS: dict[str, type[Merger]] = {merger.name: merger for merger in (Flat, Window, Buckets, Sharded)}

# Of runs that are the same bits on any number of ranks.
CANONICAL: dict[str, Callable[[ParameterStore, Communicator, int], Canonical]] = {
    merger.name: merger for merger in (Exact, ExactWindow, ExactShares)
}
