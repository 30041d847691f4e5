"""What decides what is learned: the data, the network, the batches and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from mpi_parallel.options import option
from mpi_parallel.options.values import at_least, between, memory_size, positive, share

# Counts travel in the float32 tail of the merged gradient, and float32 counts exactly up to here.
LARGEST_BATCH = 2**24


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
