"""`mpirun -n 2 python -m mpi_parallel.benchmark step`: a training step by phase, against a plain matrix product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from timeit import repeat
from typing import Any

import numpy as np

from mpi_parallel.benchmark.timing import keep, measure, settle
from mpi_parallel.config.running import DeviceOptions
from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.device import Device
from mpi_parallel.device.clock import PHASES, Clock
from mpi_parallel.device.interface import Schedule
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.optimizers import RULES, Optimizer
from mpi_parallel.options import option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least
from mpi_parallel.result_merging.accelerator import ACCELERATED
from mpi_parallel.result_merging.automatic import open_merger
from mpi_parallel.result_merging.buckets import Buckets
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.registry import MERGERS
from mpi_parallel.training.banner import library
from mpi_parallel.training.captured import CapturedSteps
from mpi_parallel.training.pacing import why_not
from mpi_parallel.training.step import train_step

SENTENCE = (
    "Measure the training step on synthetic images; ratios hold within one run, as machines are shared and noisy."
)
ROWS = 8192  # images a rank holds
LOOK = 0.5  # seconds; who spends less wants to see that it runs


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """what is measured"""

    features: int = option(784, "numbers in an image", check=at_least(1))
    hidden: tuple[int, ...] = option((128, 64), "widths of the hidden layers", check=at_least(1))
    classes: int = option(10, "number of classes", check=at_least(2))
    batch_size: int = option(256, "rows of a step over all ranks together", check=at_least(1))
    optimizer: str = option("adam", "update rule", choices=tuple(RULES))
    seconds: float = option(3.0, "time to spend", check=at_least(0.1))
    to: str | None = option(None, "also write the figures as JSON", name="FILE.json")


@dataclass(frozen=True, kw_only=True)
class MergeOption:
    """how the ranks work together"""

    merge: str = option("auto", "how the ranks' gradients become one", choices=("auto", *MERGERS, *ACCELERATED))


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """All options of `benchmark step`."""

    network: NetworkOptions
    parallel: MergeOption
    device: DeviceOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Measure, show and keep; the exit status."""
    config = parse(StepConfig, arguments, "mpi_parallel.benchmark step", SENTENCE, speaks=world.rank == 0)
    device, threads = settle(config.device, world)
    figures = measure_step(config, device, world.on(device))
    figures |= {"device": device.describe(), "threads": threads, "precision": config.device.precision}
    if world.rank == 0:
        _show(figures)
    keep(figures, config, config.network.to, world)
    return 0


def measure_step(config: StepConfig, device: Device, comm: Communicator) -> dict[str, Any]:
    """Seconds of a whole training step, by phase, and the rate of its matrix products against a plain large one."""
    options = config.network
    model = MLP(device, (options.features, *options.hidden, options.classes), precision=config.device.precision)
    random = np.random.default_rng(comm.rank)
    images = random.integers(0, 256, (ROWS, options.features), np.uint8)
    labels = random.integers(0, options.classes, ROWS).astype(np.int32)
    engine = Replica(model, Rows(images, labels, Scaler.of(72.9, 90.0), device), Clock())
    rule = RULES[options.optimizer]
    choice, optimizer = open_merger(config.parallel.merge, model.store, comm, rule), rule(model.store)
    batches = _batches(len(block(options.batch_size, comm.size, comm.rank)), random, device)
    steps = _steps(engine, choice.merger, optimizer, config)

    seconds, phases = measure(lambda: steps(next(batches)), options.seconds, device, comm, engine.clock)
    accounting = _accounting(lambda: steps(next(batches)), engine.clock)
    taken = steps.steps if isinstance(steps, Numbered) else None
    graphs, at_once = taken.replays if taken else engine.replays is not None, bool(taken and taken.at_once)
    if taken:
        taken.close()
    choice.merger.close()
    products = 2 * options.batch_size * (3 * model.store.size - options.features * (model.widths[1]))
    return {
        "ranks": comm.size,
        "merge": choice.merger.name,
        "merge_seconds": choice.seconds,
        "graphs": graphs,
        "buckets": _travels(choice.merger),
        "at_once": at_once,
        "step_seconds": seconds,
        "samples_per_second": options.batch_size / seconds,
        "seconds_by_phase": {name: phases[name] for name in PHASES},
        "accounting_share": accounting / seconds,
        "step_gflops": products / seconds / 1e9,
        "matmul_gflops": measure_matmul(device, comm, config.device.precision, min(1.0, options.seconds)),
    }


class Changes:
    """Hears how often the clock changes its phase."""

    count = 0

    def change(self, now: float, step: int, name: str, micro: int | None) -> None:
        self.count += 1

    def beside(self, step: int, lane: str, name: str, begun: float, ended: float) -> None:
        """Nothing changes."""


def _accounting(step: Callable[[], None], clock: Clock) -> float:
    """Seconds of a step that go into telling where its time goes: its changes of phase, each as long as one alone."""
    heard, watch, calls = Changes(), Clock(), 10_000
    clock.listeners += (heard,)
    step()
    clock.listeners = clock.listeners[:-1]
    return heard.count * min(repeat(lambda: watch.enter("compute", "forward"), number=calls, repeat=5)) / calls


class Numbered:
    """Captured steps, one after the other, numbered as a run would, and as far ahead."""

    def __init__(self, steps: CapturedSteps) -> None:
        self.steps, self.number = steps, 0

    def __call__(self, batch: Batch) -> None:
        self.steps.begin(batch, self.number)
        if self.number >= self.steps.ahead:
            self.steps.end()
        self.number += 1


def _steps(engine: Replica, merger: Merger, optimizer: Optimizer, config: StepConfig) -> Callable[[Batch], None]:
    """Steps as a run on this device takes them."""
    if engine.store.device.kind == "cpu" or why_not(engine, merger):
        if config.device.graphs and not merger.overlaps:
            engine.replay()

        def told(batch: Batch) -> None:
            train_step(engine, batch, merger, optimizer, 1e-3)

        return told
    schedule = Schedule(1e-3, False, 0, 1)
    return Numbered(CapturedSteps(engine, merger, optimizer, schedule, config.device.graphs))


def _batches(rows: int, random: np.random.Generator, device: Device) -> Iterator[Batch]:
    """Batches of so many rows, again and again; a GPU finds many of them in its memory, as in an epoch."""
    many = 32 if device.kind != "cpu" else 1
    index = device.to_device(random.integers(0, ROWS, many * rows))
    keys = device.to_device(np.zeros(many * rows, np.uint32))
    order = index, keys  # one, as in an epoch: steps copy another one first
    cuts = [(slice(n * rows, (n + 1) * rows), n * rows) for n in range(many)]
    return cycle([Batch(index[cut], keys[cut], None, order, start) for cut, start in cuts])


def _travels(merger: Merger) -> list[dict[str, float]]:
    """When the buckets of the last step travelled, in seconds after its backward: before 0 beside the arithmetic."""
    if not isinstance(merger, Buckets):
        return []
    zero = merger.rest.begun
    return [
        {"weights": b.span.stop - b.span.start, "begun": b.begun - zero, "ended": b.ended - zero}
        for b in (*merger.buckets, merger.rest)
    ]


def measure_matmul(device: Device, comm: Communicator, precision: str = "float32", budget: float = 1.0) -> float:
    """GFLOP/s of large square products in this precision on all ranks at once: what the step is measured against."""
    n = 1024 if device.kind == "cpu" or budget < LOOK else 8192
    random = np.random.default_rng(0)  # a chip's clock depends on the numbers, of which zeros are the easiest
    ws = Workspace(device, precision)
    a, b = (device.to_device(random.normal(size=(n, n)).astype(np.float32)) for _ in range(2))
    a, b, c = ws.narrowed(a), ws.narrowed(b), ws.empty((n, n))
    seconds, _ = measure(lambda: device.kernels.linear(a, b, None, c, False), budget, device, comm)
    return comm.size * 2 * n**3 / seconds / 1e9


def _show(figures: dict[str, Any]) -> None:
    phases = "  ".join(f"{name} {1e6 * seconds:.0f}" for name, seconds in figures["seconds_by_phase"].items())
    print(f"{figures['ranks']} ranks, {library()}, {figures['device']}, merged by {figures['merge']}")
    how = "captured" if figures["graphs"] else "told by the host"
    print(f"how        {figures['precision']}, steps {how}{', all layers at once' if figures['at_once'] else ''}")
    print(f"step       {1e6 * figures['step_seconds']:10.1f} us   {figures['samples_per_second']:,.0f} samples/s")
    print(f"of these   {phases} us, {figures['accounting_share']:.2%} of them for these accounts")
    for bucket in figures["buckets"]:
        begun, ended = 1e6 * bucket["begun"], 1e6 * bucket["ended"]
        print(f"bucket     {bucket['weights']:10,} weights from {begun:8.0f} to {ended:8.0f} us after backward")
    rate, plain = figures["step_gflops"], figures["matmul_gflops"]
    print(f"products   {rate:10.1f} GFLOP/s, {rate / plain:.0%} of the {plain:.0f} of a large one")
