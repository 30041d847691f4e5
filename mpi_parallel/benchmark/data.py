"""Reading and distributing data: `mpirun -n 2 python -m mpi_parallel.benchmark data --folder /scratch --size 8G`.

A file is generated, read from its start to its end with plain h5py, and then trained on as one that does not fit into
memory. Streaming can be no faster than the reading, nor than the arithmetic on rows that are in memory: it takes turns
with a run on a small file, so that what else goes on at the machine slows both, and shows what resident rows cost.
At last a CSV file is converted (converting.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpi_parallel.benchmark.converting import converting, told
from mpi_parallel.benchmark.scratch import memory_watched, scratch_folder
from mpi_parallel.benchmark.timing import keep, settle
from mpi_parallel.config.learning import DataOptions
from mpi_parallel.config.running import DeviceOptions
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.data_parallel.loader import TrainingRows
from mpi_parallel.data_parallel.memory import Budget, budget_of
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.data_parallel.split import open_file
from mpi_parallel.device import Device
from mpi_parallel.device.clock import PHASES, Clock, process_seconds
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.options import option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least, bytes_of, memory_size
from mpi_parallel.result_merging.automatic import open_merger
from mpi_parallel.result_merging.registry import MERGERS
from mpi_parallel.training.banner import library
from mpi_parallel.training.step import train_step

SENTENCE = "Measure reading, distributing and converting data: resident rows, streaming of a generated file, CSV."
SHAPE, CLASSES = (28, 28), 10
RESIDENT_ROWS = 60_000
TURNS = 8  # few enough that what is read while the small file has its turn does not count
TABLE_ROW = 5 * 784  # bytes of a row of a table, and of the file that is made of it
SLAB = 8 << 20  # bytes that are written, and read with plain h5py, at a time


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """what is measured"""

    folder: str = option(".", "where the generated files are put; they are removed again", name="FOLDER")
    size: str = option("2G", "size of the file that is streamed", check=memory_size, name="SIZE")
    memory: str = option("512M", "memory of a node for rows", check=memory_size, name="SIZE")
    window: str = option("256M", "rows that streaming shuffles together, of all shards", check=memory_size, name="SIZE")
    shards: int = option(64, "contiguous parts that the training rows are dealt in", check=at_least(1))
    batch_size: int = option(256, "rows of a step over all ranks together", check=at_least(1))
    hidden: tuple[int, ...] = option((128, 64), "widths of the hidden layers", check=at_least(1))
    merge: str = option("auto", "how the ranks' gradients become one", choices=("auto", *MERGERS))
    chunk: int = option(0, "images in a chunk of the file; 0 is one piece", check=at_least(0))
    table_rows: int = option(60_000, "rows of the CSV file that is converted; 0 leaves that out", check=at_least(0))
    table_of: str | None = option(None, "file whose training images these are; by default random ones", name="FILE.h5")
    to: str | None = option(None, "also write the figures as JSON", name="FILE.json")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """All options of `benchmark data`."""

    measure: MeasureOptions
    device: DeviceOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Measure, show and keep; the exit status."""
    started = process_seconds()
    config = parse(DataConfig, arguments, "mpi_parallel.benchmark data", SENTENCE, speaks=world.rank == 0)
    device, threads = settle(config.device, world)
    tables = config.measure.table_rows * TABLE_ROW
    with scratch_folder(config.measure.folder, bytes_of(config.measure.size) + tables, world) as folder:
        figures = _Bench(config.measure, folder, world.on(device), world.node(), device).measure(started)
        if tables:
            figures["converting"] = converting(folder, config.measure.table_rows, config.measure.table_of, world)
    figures |= {"device": device.describe(), "threads": threads}
    if world.rank == 0:
        _show(figures)
    keep(figures, config, config.measure.to, world)
    return 0


class _Bench:
    """The parts of the benchmark, on one rank."""

    def __init__(
        self, options: MeasureOptions, folder: Path, comm: Communicator, node: Communicator, device: Device
    ) -> None:
        self.options, self.folder, self.comm, self.node, self.device = options, folder, comm, node, device

    def measure(self, started: float) -> dict[str, Any]:
        """All figures; `started` are the seconds that it took to get here."""
        row = int(np.prod(SHAPE))
        small = self._generate("small.h5", RESIDENT_ROWS)
        began = time.perf_counter()
        resident = _Training(self.options, small, Budget(), self.comm, self.device)
        resident.take(1)
        first = started + time.perf_counter() - began
        resident.take(200)
        large = self._generate("large.h5", bytes_of(self.options.size) // row)
        plain = self._read_plainly(large)
        asked = DataOptions(
            data=str(large), memory=self.options.memory, window=self.options.window, holding="streaming"
        )
        budget = budget_of(asked, self.node, self.device)
        with memory_watched() as memory:
            streamed = _Training(self.options, large, budget, self.comm, self.device)
            resident.forget()
            for part in (block(streamed.steps, TURNS, turn) for turn in range(TURNS)):
                streamed.take(len(part))
                resident.take(max(1, len(part) // 2))
        plain = max(plain, self._read_plainly(large))
        figures = {"resident": resident.figures(), "streaming": streamed.figures()}
        rates = {name: told["samples_per_second"] * row for name, told in figures.items()}
        return figures | {
            "ranks": self.comm.size,
            "seconds_to_first_step": first,
            "file_bytes": large.stat().st_size,
            "peak_bytes": int(self.comm.gather(np.array(memory)).sum()),
            "plain_bytes_per_second": plain,
            "compute_bytes_per_second": rates["resident"],
            "streaming_bytes_per_second": rates["streaming"],
            "share_of_the_limit": rates["streaming"] / min(plain, rates["resident"]),
        }

    def _generate(self, name: str, rows: int) -> Path:
        """A file of random images, written by the first rank."""
        path = self.folder / name
        if self.comm.rank == 0:
            step = max(1, SLAB // int(np.prod(SHAPE)))
            some = np.random.default_rng(0).integers(0, 256, (step, *SHAPE), np.uint8)
            with h5py.File(path, "w") as file:
                chunks = (self.options.chunk, *SHAPE) if self.options.chunk else None
                images = file.create_dataset("train/images", (rows, *SHAPE), np.uint8, chunks=chunks)
                file["train/labels"] = np.random.default_rng(1).integers(0, CLASSES, rows).astype(np.uint8)
                for start in range(0, rows, step):
                    images[start : start + step] = some[: rows - start]
                file.attrs.update(mean=127.5, std=73.9, classes=[str(number) for number in range(CLASSES)])
        self.comm.meet()
        return path

    def _read_plainly(self, path: Path) -> float:
        """Bytes a second of one process that reads the images from start to end; the others wait."""
        rate = 0
        if self.comm.rank == 0:
            with open_file(str(path)) as file:
                images = file["train/images"]
                room = np.ones((max(1, SLAB // int(np.prod(SHAPE))), *SHAPE), np.uint8)
                began = time.perf_counter()
                for start in range(0, len(images), len(room)):
                    count = min(len(room), len(images) - start)
                    images.read_direct(room[:count], np.s_[start : start + count])
                rate = int(images.size / (time.perf_counter() - began))
        return float(self.comm.maximum(rate))


class _Training:
    """A run on one file, taken some steps at a time."""

    def __init__(self, options: MeasureOptions, path: Path, budget: Budget, comm: Communicator, device: Device) -> None:
        data = open_image_set(DataOptions(data=str(path)), 0, comm)
        self.comm, self.device, self.batch_size = comm, device, options.batch_size
        self.rows = TrainingRows(data, options.shards, 0, comm, device, budget)
        model = MLP(device, (data.features, *options.hidden, CLASSES))
        self.engine = Replica(model, self.rows.rows, Clock())
        self.merger = open_merger(options.merge, model.store, comm, RULES["adam"]).merger
        self.optimizer = RULES["adam"](model.store)
        self.steps = self.rows.steps(options.batch_size)
        self.batches = (batch for epoch in count() for batch in self.rows.epoch(epoch, options.batch_size))
        self.forget()

    def forget(self) -> None:
        """Count from here."""
        self.samples, self.seconds = 0, dict.fromkeys(PHASES, 0.0)

    def take(self, steps: int) -> None:
        """Train on, and add to the counts."""
        clock = self.engine.clock
        clock.reset()
        for batch in clock.booked("data", islice(self.batches, steps)):
            self.samples += train_step(self.engine, batch, self.merger, self.optimizer, 1e-3).count
        self.device.synchronize()
        clock.total()
        self.seconds = {phase: seconds + clock.seconds[phase] for phase, seconds in self.seconds.items()}

    def figures(self) -> dict[str, Any]:
        """The mean of the ranks; it ends the run."""
        self.rows.rows.close()
        self.merger.close()
        means = self.comm.gather(np.array(list(self.seconds.values()))).mean(axis=0).tolist()
        return {
            "holding": self.rows.holding,
            "samples": self.samples,
            "samples_per_second": self.samples / sum(means),
            "seconds_by_phase": dict(zip(PHASES, means, strict=True)),
            "data_share": means[PHASES.index("data")] / sum(means),
        }


def _show(figures: dict[str, Any]) -> None:
    mega = 1e-6
    print(f"{figures['ranks']} ranks, {library()}, {figures['device']}")
    for name in ("resident", "streaming"):
        part = figures[name]
        whole = sum(part["seconds_by_phase"].values())
        phases = "  ".join(f"{phase} {seconds / whole:.1%}" for phase, seconds in part["seconds_by_phase"].items())
        print(f"{name:<10} {part['samples_per_second']:12,.0f} samples/s   {phases}")
    print(f"first step {figures['seconds_to_first_step']:12.2f} s after the start of the process, with resident rows")
    print(f"reading    {figures['plain_bytes_per_second'] * mega:12,.0f} MB/s by one process with plain h5py")
    print(f"computing  {figures['compute_bytes_per_second'] * mega:12,.0f} MB/s of resident rows")
    print(
        f"streaming  {figures['streaming_bytes_per_second'] * mega:12,.0f} MB/s, "
        f"{figures['share_of_the_limit']:.0%} of the lower of these"
    )
    print(f"memory     {figures['peak_bytes'] * mega:12,.0f} MB at most of all ranks together (proportional set size)")
    if "converting" in figures:
        print(told(figures["converting"], figures["ranks"]))
