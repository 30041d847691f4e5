"""`mpirun -n 2 python -m mpi_parallel.benchmark checkpoint`: what saving costs, and how fast a large one is.

Both are measured on whole runs of `train` in this process: the default job with a checkpoint a second and with none, in
turn; then a large network, while training goes on and at the end of the run, in turn with as many bytes written by one
rank as fast as it can, through the page cache and past it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isqrt
from mmap import mmap
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import h5py
import numpy as np

from mpi_parallel.benchmark.scratch import scratch_folder
from mpi_parallel.benchmark.timing import keep
from mpi_parallel.config import TrainConfig
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least
from mpi_parallel.train import train
from mpi_parallel.training.banner import library
from mpi_parallel.training.checkpoints.disk import put
from mpi_parallel.training.faults.legacy import Forgetful
from mpi_parallel.training.faults.signals import StopRequest

SENTENCE = "Measure what checkpoints cost a run, and the rate at which a large one is written against the disk's."
FEATURES, CLASSES, ROWS = 784, 10, 60_000  # of images like Fashion-MNIST's
ARRAYS = 3  # as large as the network: weights, and Adam's two moments
SLAB = 4 << 20  # bytes that the disk gets at a time
WARM_UP = 2  # epochs that are not counted
LONGER = 4  # times that training goes on for as long as a checkpoint takes alone


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """what is measured"""

    seconds: float = option(6.0, "time that one run of the default job takes", check=at_least(0.1))
    rounds: int = option(3, "times that everything is measured", check=at_least(1))
    every: str = option("1s", "how often the default job is saved", name="1s")
    parameters: int = option(100_000_000, "weights of the large network", check=at_least(10_000))
    folder: str = option(".", "where the files are written: on the disk that is to be measured", name="FOLDER")
    to: str | None = option(None, "also write the figures as JSON", name="FILE.json")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """All options of `benchmark checkpoint`."""

    checkpoint: CheckpointOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Measure, show and keep; the exit status."""
    config = parse(CheckpointConfig, arguments, "mpi_parallel.benchmark checkpoint", SENTENCE, speaks=world.rank == 0)
    options = config.checkpoint
    room = ROWS * FEATURES + 3 * 4 * ARRAYS * options.parameters
    with scratch_folder(options.folder, room, world) as folder:
        figures = {"ranks": world.size} | measure_overhead(options, folder, world)
        figures |= measure_rate(options, folder, world)
    if world.rank == 0:
        _show(figures)
    keep(figures, config, options.to, world)
    return 0


def measure_overhead(options: CheckpointOptions, folder: Path, world: Communicator) -> dict[str, Any]:
    """Seconds of training an epoch of the default job takes, saved and not saved."""
    data = _make(folder / "images.h5", ROWS, world)
    runs = Runs(folder, world, data)
    once = median(runs.epochs(["--epochs", str(WARM_UP + 3), "--checkpoint-every", "never"]))
    epochs = WARM_UP + max(5, int(options.seconds / once))
    seconds: dict[str, list[float]] = {options.every: [], "never": []}
    saved, held = 0, list[float]()
    for _ in range(options.rounds):
        for every, found in seconds.items():
            took = runs.epochs(["--epochs", str(epochs), "--checkpoint-every", every])
            found.append(sum(took) / len(took))
            saved += len(runs.saved)
            held += runs.held
    with_them, without = (median(found) for found in seconds.values())
    return {
        "epoch_seconds_saved": with_them,
        "epoch_seconds": without,
        "overhead": with_them / without - 1,
        "checkpoints_a_run": saved / options.rounds,
        "held_seconds": median(held),
        "rounds": seconds,
    }


def measure_rate(options: CheckpointOptions, folder: Path, world: Communicator) -> dict[str, Any]:
    """Bytes a second of checkpoints of a large network, from the copy to the name, and of plain writing, in turn."""
    data, width = _make(folder / "few.h5", 64, world), _width(options.parameters)
    runs, size = Runs(folder, world, data), 4 * ARRAYS * _parameters(width)
    # So slow that the weights learn nothing: moments of vanishing gradients are denormal, and such steps take long.
    large = ["--hidden", str(width), str(width), "--batch-size", "64", "--lr", "1e-7", "--keep", "1"]
    steps = runs.epochs([*large, "--steps", str(WARM_UP + 2), "--checkpoint-every", "0"])
    apart = world.maximum(ceil(LONGER * runs.saved[0] / min(steps)))
    seconds: dict[str, list[float]] = {"training": [], "alone": [], "plain": [], "plain_direct": []}
    held = []
    for _ in range(options.rounds):
        for kind, direct in (("plain", 0), ("plain_direct", os.O_DIRECT)):
            seconds[kind].append(_plain(folder / "plain", size, direct, world))
        runs.epochs([*large, "--steps", str(2 * apart), "--checkpoint-every", str(apart)])
        for kind, held_up, saved in zip(("training", "alone"), runs.held, runs.saved, strict=True):
            seconds[kind].append(held_up + saved)
        held += runs.held
    rates = {kind: size / median(found) for kind, found in seconds.items()}
    disk = max(rates["plain"], rates["plain_direct"])
    return {
        "parameters": _parameters(width),
        "bytes": size,
        "rates": rates,
        "shares": {kind: rates[kind] / disk for kind in ("training", "alone")},
        "large_held_seconds": median(held),
        "large_steps_apart": apart,
        "large_rounds": seconds,
    }


class Runs:
    """Whole runs within this process, one after the other."""

    def __init__(self, folder: Path, world: Communicator, data: Path) -> None:
        self.folder, self.world, self.data = folder, world, data
        self.count = 0
        self.saved: list[float] = []  # seconds of each checkpoint of the last run
        self.held: list[float] = []  # of these, how long each held up a step

    def epochs(self, options: Sequence[str]) -> list[float]:
        """Train; seconds of each epoch but the first ones."""
        self.count += 1
        out = self.folder / f"{self.data.stem}-{self.count}"
        given = ["--data", str(self.data), "--out", str(out), "--progress", "none", "--no-report"]
        config = parse(TrainConfig, [*given, *options], "mpi_parallel.train", "", speaks=False)
        train(self.world, Forgetful(), config, StopRequest())
        self.world.meet()
        events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        checkpoints = [event for event in events if event["event"] == "checkpoint"]
        self.saved, self.held = ([event[key] for event in checkpoints] for key in ("seconds", "held"))
        self.world.meet()
        return [event["seconds"] for event in events if event["event"] == "epoch"][WARM_UP:]


def _make(path: Path, rows: int, world: Communicator) -> Path:
    """Random images and labels."""
    if world.rank == 0:
        random = np.random.default_rng(0)
        with h5py.File(path, "w") as file:
            file["train/images"] = random.integers(0, 256, (rows, 28, FEATURES // 28), np.uint8)
            file["train/labels"] = random.integers(0, CLASSES, rows).astype(np.uint8)
    world.meet()
    return path


def _plain(path: Path, size: int, direct: int, world: Communicator) -> float:
    """Seconds that rank 0 takes to write so many bytes and have them on the disk, as dd does; the others wait.

    `direct` is 0, or O_DIRECT for writing past the page cache, which a file system may not know.
    """
    world.meet()
    seconds = 0.0
    if world.rank == 0:
        slab = mmap(-1, SLAB)  # begins with a page
        slab.write(np.random.default_rng(0).bytes(SLAB))
        began = perf_counter()
        file = _open(path, direct)
        with memoryview(slab) as data:
            for offset in range(0, size, SLAB):  # the last one is whole, too
                put(file, data, offset)
        os.fsync(file)
        os.close(file)
        seconds = perf_counter() - began
        path.unlink()
    return world.total(seconds)


def _open(path: Path, direct: int) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | direct, 0o666)
    except OSError:
        return os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)


def _width(parameters: int) -> int:
    """Of two hidden layers that make a network of about so many weights."""
    outer = FEATURES + CLASSES + 2
    return max(1, (isqrt(outer**2 + 4 * parameters) - outer) // 2)


def _parameters(width: int) -> int:
    return (FEATURES + 1) * width + (width + 1) * width + (width + 1) * CLASSES


def _show(figures: dict[str, Any]) -> None:
    saved, plain = 1e3 * figures["epoch_seconds_saved"], 1e3 * figures["epoch_seconds"]
    print(f"{figures['ranks']} ranks, {library()}")
    print(f"default job   {saved:.1f} ms an epoch with {figures['checkpoints_a_run']:.0f} checkpoints a run, ")
    print(f"              {plain:.1f} without: {figures['overhead']:+.2%}; one holds up a step ", end="")
    print(f"for {1e3 * figures['held_seconds']:.2f} ms")
    print(f"large         {figures['parameters']:,} weights, {figures['bytes'] / 1e9:.2f} GB a checkpoint; ", end="")
    print(f"one holds up a step for {1e3 * figures['large_held_seconds']:.0f} ms")
    rates, shares = figures["rates"], figures["shares"]
    print(f"              {rates['plain'] / 1e6:,.0f} MB/s plain writing and fsync, ", end="")
    print(f"{rates['plain_direct'] / 1e6:,.0f} past the page cache")
    print(f"              {rates['training'] / 1e6:,.0f} MB/s while training goes on, ", end="")
    print(f"{shares['training']:.0%} of the faster of these")
    print(f"              {rates['alone'] / 1e6:,.0f} MB/s at the end of a run, {shares['alone']:.0%}")
