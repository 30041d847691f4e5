"""What a training run is told. The command line and the TOML file are made from its fields (see options)."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from mpi_parallel.config.learning import BatchOptions, DataOptions, ModelOptions, OptimizerOptions
from mpi_parallel.config.running import DeviceOptions, ParallelOptions, RunOptions
from mpi_parallel.options import InputError

# Why these mergers have no form that gives the same bits on any number of ranks.
WITHOUT_ORDER = {
    "flat": "MPI_Allreduce adds in an order of its own, which depends on the ranks",
    "buckets": "a group's gradient is complete only when its backward has ended, so no bucket could leave before",
    "nccl": "NCCL adds in an order of its own, which depends on the ranks",
    "pinned": "it adds what ranks have, not what groups of rows have",
    "aware": "MPI_Allreduce adds in an order of its own, which depends on the ranks",
}
SURVIVING = ("auto", "flat", "buckets", "sharded", "exact")  # mergers that can lose ranks
ROWS_OF_A_GROUP = 64  # with 32 an exact step of the default job takes 1.35 times as long


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of `python -m mpi_parallel.train`."""

    data: DataOptions
    model: ModelOptions
    batch: BatchOptions
    optimizer: OptimizerOptions
    parallel: ParallelOptions
    device: DeviceOptions
    run: RunOptions

    def __post_init__(self) -> None:
        if (self.data.images is None) != (self.data.labels is None):
            raise InputError("--images and --labels name the two datasets of a foreign file: give both or none")
        if self.parallel.groups and self.batch.shards % self.parallel.groups:
            raise InputError(f"--groups {self.parallel.groups} do not divide --shards {self.batch.shards}")
        self._check_merger()
        if self.run.resume == "auto" and self.run.out is None:
            raise InputError("--resume auto goes on in the folder of the run: name it with --out")
        if self.run.survive:
            self._check_survival()
        if self.parallel.layout == "auto" and (self.parallel.tensor > 1 or self.parallel.pipe > 1):
            raise InputError(
                f"--layout auto proposes the grid itself, but --tensor {self.parallel.tensor} and --pipe "
                f"{self.parallel.pipe} ask for one: leave out one or the other"
            )
        if not os.fspath(self.data.data):
            raise InputError("--data is empty: name an HDF5 file")

    def _check_merger(self) -> None:
        """Raise InputError for a merger that --reproducible cannot have; docs/reproducibility.md says more."""
        wire = f"--wire {self.parallel.wire}"
        if self.parallel.wire != "float32" and self.groups is not None:
            raise InputError(f"{wire} rounds sums of ranks, so their number shows: leave it out of an exact run")
        if self.parallel.wire != "float32" and self.parallel.merge not in ("auto", "flat", "window"):
            raise InputError(f"{wire} goes with --merge flat, window or auto, not with --merge {self.parallel.merge}")
        if not self.parallel.reproducible:
            return
        merge, exact = self.parallel.merge, "choose --merge exact"
        if merge in WITHOUT_ORDER:
            raise InputError(f"--reproducible cannot have --merge {merge}: {WITHOUT_ORDER[merge]}; {exact}, or auto")
        if merge in ("window", "sharded") and self.optimizer.optimizer == "lamb":
            raise InputError(
                f"--reproducible --merge {merge} cannot have --optimizer lamb: it looks at the norms of whole layers, "
                f"and slices would add them up in another order on another number of ranks; {exact}"
            )

    @property
    def merge(self) -> str:
        """How the ranks' gradients become one, as far as the options say; what survives must not wait in memory."""
        reproducible, merge = self.parallel.reproducible, self.parallel.merge
        if reproducible and (self.optimizer.optimizer == "lamb" or (self.run.survive and merge == "auto")):
            return "exact"
        return "flat" if self.run.survive and merge == "auto" else merge

    def _check_survival(self) -> None:
        if self.parallel.merge not in SURVIVING:
            raise InputError(
                f"--survive merges by messages, which tell of dead ranks, so not by --merge {self.parallel.merge}: "
                f"choose from {', '.join(SURVIVING)}"
            )
        if self.parallel.pipe * self.parallel.tensor > 1:
            raise InputError(
                f"--survive needs the whole model on every rank, so not --pipe {self.parallel.pipe} --tensor "
                f"{self.parallel.tensor}: what a dead rank held of a split model no other has"
            )

    def merging_by(self, name: str) -> TrainConfig:
        """The same, with the merger that `auto` has found: what repeats the run to the bit."""
        return replace(self, parallel=replace(self.parallel, merge=name))

    @property
    def threads(self) -> int | None:
        """Threads of a rank; an exact run has one unless told, as their number is part of what rounds a product."""
        return self.device.threads or (1 if self.groups else None)

    @property
    def groups(self) -> int | None:
        """How many groups of rows are summed apart in an exact run; None in others."""
        if not (self.parallel.reproducible or self.parallel.merge == "exact"):
            return None
        if self.parallel.groups is not None:
            return self.parallel.groups
        groups = 1
        while self.batch.shards % (2 * groups) == 0 and 2 * groups * ROWS_OF_A_GROUP <= self.batch.batch_size:
            groups *= 2
        return groups
