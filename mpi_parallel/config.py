"""What a training run is told. The command line and the TOML file are made from these fields (see options.py)."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from mpi_parallel.options import (
    InputError,
    at_least,
    between,
    duration,
    interval,
    memory_size,
    option,
    positive,
    power_of_two,
    share,
    time_limit,
)

# Counts travel in the float32 tail of the merged gradient, and float32 counts exactly up to here.
LARGEST_BATCH = 2**24
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
class DataOptions:
    """what to train on"""

    data: str = option(..., "HDF5 file of images and labels", name="FILE.h5")
    images: str | None = option(None, "path of the images in a file of another layout", name="/PATH")
    labels: str | None = option(None, "path of the labels in a file of another layout", name="/PATH")
    allow_external: bool = option(
        False, "read also what the file takes from other files, and believe the sizes that it declares"
    )
    validation: float = option(
        0.0, "share of the training rows to hold out when the file has no validation split", check=between(0, 1)
    )
    memory: str | None = option(
        None,
        "memory of a node for rows of the file, such as 512M; by default half of what the node has available",
        check=memory_size,
        name="SIZE",
    )
    holding: str = option(
        "auto",
        "resident keeps the rows in memory, streaming reads them anew in each epoch, in another order; "
        "auto is resident where the training rows fit",
        choices=("auto", "resident", "streaming"),
    )
    window: str = option(
        "256M",
        "rows that streaming shuffles together, of all shards; part of what makes its order",
        check=memory_size,
        name="SIZE",
    )
    shift: int = option(0, "move training images by up to so many pixels each way", check=at_least(0), name="PIXELS")
    flip: bool = option(False, "mirror half of the training images, left to right")
    erase: float = option(0.0, "share of the training images that lose a random rectangle", check=share)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """the network: Dense relu layers, then one Dense layer of logits"""

    hidden: tuple[int, ...] = option(
        (128, 64), "widths of the hidden layers; none gives logistic regression", check=at_least(1)
    )
    dropout: float = option(0.0, "share of the hidden activations dropped in training", check=between(0, 1))


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """how much, in which order, for how long"""

    batch_size: int = option(256, "rows of a step over all ranks together", check=between(1, LARGEST_BATCH + 1))
    micro_batch: int | None = option(
        None, "rows that a rank computes at once; gradients accumulate over the rest", check=at_least(1), name="ROWS"
    )
    epochs: int = option(10, "passes over the training rows", check=at_least(0))
    steps: int | None = option(None, "stop after this many steps instead", check=at_least(0))
    shards: int = option(
        64, "contiguous parts that the training rows are dealt in; part of what makes the order", check=at_least(1)
    )
    seed: int = option(0, "seed of the weights, the order of samples, dropout and splits", check=between(0, 2**32))


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """how the weights move"""

    optimizer: str = option("adam", "update rule", choices=("adam", "adamw", "sgd", "momentum", "lamb"))
    lr: float = option(1e-3, "learning rate", check=positive)
    schedule: str = option("constant", "learning rate over the run, after the warm-up", choices=("constant", "cosine"))
    warmup: int = option(
        0, "steps over which the learning rate rises linearly from zero", check=at_least(0), name="STEPS"
    )
    weight_decay: float = option(
        0.0, "weight decay: decoupled in adamw, an L2 term of the gradient in the others", check=at_least(0)
    )
    clip_norm: float = option(0.0, "largest Euclidean norm of the mean gradient; 0 leaves it alone", check=at_least(0))


@dataclass(frozen=True, kw_only=True)
class ParallelOptions:
    """how the ranks work together"""

    layout: str = option(
        "given",
        "given takes --tensor and --pipe; auto proposes them, from the network's size, the memory of a rank and the "
        "measured speed of products and messages, and says why",
        choices=("given", "auto"),
    )
    rank_memory: str | None = option(
        None,
        "memory of a rank, the program's own included: a run whose forecast is above it is refused; by default what "
        "the node has available, shared by its ranks, or ulimit -v",
        check=memory_size,
        name="SIZE",
    )
    tensor: int = option(1, "cut every layer into so many slices, a rank each", check=at_least(1), name="SLICES")
    pipe: int = option(
        1, "put the layers on so many stages, a rank each; the ranks that are left divide the data. Stages share a "
        "layer where that is faster, but with --reproducible", check=at_least(1), name="STAGES",
    )  # fmt: skip
    pipe_schedule: str = option(
        "1f1b",
        "order of the micro-batches in a pipeline: gpipe takes all forward first, 1f1b holds fewer activations",
        choices=("gpipe", "1f1b"),
    )
    merge: str = option(
        "auto",
        "how the ranks' gradients become one; nccl, pinned and aware are for GPUs",
        choices=("auto", "flat", "buckets", "window", "sharded", "exact", "nccl", "pinned", "aware"),
    )
    reproducible: bool = option(
        False, "the same weights, bit for bit, on any number of ranks, by --merge exact, window or sharded"
    )
    wire: str = option(
        "float32",
        "how gradients travel between nodes, by --merge flat or window: rounded to 16 bits they are half as many bytes",
        choices=("float32", "float16", "bfloat16"),
    )
    groups: int | None = option(
        None,
        "parts of a batch that --reproducible sums apart, a power of two that divides --shards; no more ranks than "
        "groups have work; by default as many as keep 64 rows each",
        check=power_of_two,
    )


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """where the arithmetic runs"""

    device: str = option("auto", "auto takes a GPU where there is one for the rank", choices=("auto", "cpu", "cuda"))
    precision: str = option(
        "float32",
        "numbers in matrix products; all else is float32. A CPU rounds to the narrower ones and is no faster for it",
        choices=("float32", "tf32", "bfloat16", "float16"),
    )
    graphs: bool = option(True, "let a GPU replay a step that it has taken before as one CUDA graph")
    threads: int | None = option(
        None, "threads of a rank; by default its share of the cores that it may use", check=at_least(1)
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """what is shown and kept, and when to stop early"""

    out: str | None = option(
        None, "folder for the log, the metrics and the configuration; by default runs/DATE-TIME", name="runs/NAME"
    )
    progress: str = option(
        "auto", "auto is a bar on a terminal and plain lines elsewhere", choices=("auto", "bar", "plain", "none")
    )
    resume: str | None = option(
        None,
        "go on from this checkpoint, or with auto from the newest whole one in --out, where there is one",
        name="auto|FILE",
    )
    start: str | None = option(
        None,
        "start from these weights: a .weights.h5 or .keras file of Keras, .safetensors, a run's folder or a "
        "checkpoint; a run that --resume goes on with has its own",
        name="FILE",
    )
    checkpoint_every: str = option(
        "5m",
        "save the run every so many steps, or seconds, minutes or hours, such as 90s or 5m; 0 saves at its end only, "
        "never not at all",
        check=interval,
        name="5m|STEPS",
    )
    time_limit: str = option(
        "auto",
        "stop with a checkpoint and exit status 75 before so much time has passed; auto is the end of the Slurm job",
        check=time_limit,
        name="auto|HH:MM:SS",
    )
    keep: int = option(3, "checkpoints to keep, beside the one with the lowest validation loss", check=at_least(1))
    target_accuracy: float | None = option(
        None,
        "stop once an epoch ends with at least this accuracy (validation, or training without one)",
        check=share,
    )
    early_stop: int | None = option(
        None,
        "stop when this many epochs brought no lower loss (validation, or training without one)",
        check=at_least(1),
        name="EPOCHS",
    )
    max_bad_steps: int = option(
        0,
        "skip up to so many steps whose loss or gradient is not finite; one more ends the run, with status 3",
        check=at_least(0),
        name="STEPS",
    )
    check_replicas: int = option(
        0,
        "compare the ranks' copies of the weights every so many steps, and end the run, naming who differs",
        check=at_least(0),
        name="STEPS",
    )
    survive: bool = option(
        False,
        "go on without ranks that die, in the same job and from memory: for mpirun --with-ft ulfm of Open MPI; "
        "--merge auto is then flat",
    )
    hang_timeout: str = option(
        "10m",
        "end the job, naming the rank that is missed, once no rank has moved for so long; 0 waits for ever",
        check=duration,
        name="TIME",
    )
    report: bool = option(
        True, "write report.html at the end: curves, confusion matrix, where the time went, configuration, environment"
    )
    tensorboard: bool = option(False, "write event files too, for tensorboard --logdir runs")
    trace: bool = option(
        False, "write trace.json: what every rank did when, for ui.perfetto.dev, of the first --trace-steps steps"
    )
    trace_steps: int = option(200, "how many steps --trace keeps; its memory and file grow with them",
        check=at_least(1), name="STEPS",
    )  # fmt: skip


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
