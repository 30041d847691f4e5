"""What decides how and where: the ranks, their devices, what is shown and kept, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass

from mpi_parallel.options import option
from mpi_parallel.options.values import at_least, duration, interval, memory_size, power_of_two, share, time_limit


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
    graphs: bool = option(
        True,
        "replay what was computed before for as many rows: a GPU as one CUDA graph, a core from a list of its calls",
    )
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
