"""The mergers by the names that --merge has for them: the reference, then the most promising ones first."""

from __future__ import annotations

from mpi_parallel.result_merging.buckets import Buckets
from mpi_parallel.result_merging.flat import Flat
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.sharded import Sharded
from mpi_parallel.result_merging.window import Window

MERGERS: dict[str, type[Merger]] = {merger.name: merger for merger in (Flat, Window, Buckets, Sharded)}
