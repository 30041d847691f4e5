"""`mpirun -n 2 python -m mpi_parallel.benchmark merge`: each merger with its update, against Allreduce and NumPy Adam.

All take turns within one run. Before each call every rank rewrites its gradients, as a backward does, so that they lie
in its own caches and in nobody else's. A call's time is the slowest rank's, and the median of the calls is told.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpi_parallel.benchmark.timing import keep, settle
from mpi_parallel.config.running import DeviceOptions
from mpi_parallel.device import Device
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.optimizers import RULES, Adam, Optimizer
from mpi_parallel.nn.store import COUNT, ParameterStore
from mpi_parallel.options import InputError, option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.registry import MERGERS
from mpi_parallel.training.banner import library

SENTENCE = "Measure merging and updating together, for each merger, against MPI Allreduce followed by NumPy's Adam."
BASELINE = "Allreduce, NumPy Adam"
LAYERS = 8  # that the weights are divided into, for the mergers that work layer by layer
CALLS = 10  # of one merger before it is the next one's turn


@dataclass(frozen=True, kw_only=True)
class MergingOptions:
    """what is measured"""

    sizes: tuple[int, ...] = option((109_386, 10_000_000), "numbers of weights", check=at_least(LAYERS))
    optimizer: str = option("adam", "update rule of the mergers", choices=tuple(RULES))
    seconds: float = option(8.0, "time to spend on each size", check=at_least(0.1))
    to: str | None = option(None, "also write the figures as JSON", name="FILE.json")


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """All options of `benchmark merge`."""

    merging: MergingOptions
    device: DeviceOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Measure, show and keep; the exit status."""
    config = parse(MergeConfig, arguments, "mpi_parallel.benchmark merge", SENTENCE, speaks=world.rank == 0)
    device, threads = settle(config.device, world)
    options, comm = config.merging, world.on(device)
    seconds = {n: measure_size(n, options.optimizer, options.seconds, device, comm) for n in options.sizes}
    figures = {"ranks": world.size, "device": device.describe(), "threads": threads, "seconds": seconds}
    if world.rank == 0:
        _show(figures)
    keep(figures, config, options.to, world)
    return 0


class Steps:
    """Steps without a network, by one merger."""

    def __init__(self, merger: Merger, optimizer: Optimizer) -> None:
        self.merger, self.store, self.optimizer = merger, merger.store, optimizer
        self.parameters = list(self.store.parameters.values())

    def prepare(self, gradient: Any) -> None:
        """Backward's writes."""
        self.store.zero_grad()
        self.store.gradients[...] = gradient
        self.store.tail[COUNT] = 1

    def call(self) -> None:
        """Merge, update, publish."""
        for parameter in self.parameters:
            self.merger.ready((parameter,))
        totals = self.merger.merge()
        self.optimizer.step(self.merger.owned, 1e-3, 1 / totals.count)
        self.merger.publish()

    def close(self) -> None:
        self.merger.close()


class NumpyAdam:
    """What one writes first: Allreduce of the gradients, then Adam in twelve passes over whole arrays of NumPy."""

    def __init__(self, size: int, comm: Communicator) -> None:
        self.comm, self.scale, self.steps = comm, 1 / comm.size, 0
        self.w, self.g, self.m, self.v, self.a = (np.zeros(size, np.float32) for _ in range(5))

    def prepare(self, gradient: Any) -> None:
        self.g[...] = gradient

    def call(self) -> None:
        self.comm.sum(self.g)
        self.steps += 1
        w, g, m, v, a, scale = self.w, self.g, self.m, self.v, self.a, self.scale
        root = math.sqrt(1 - Adam.beta2**self.steps)
        np.multiply(m, Adam.beta1, out=m)
        np.multiply(g, (1 - Adam.beta1) * scale, out=a)
        np.add(m, a, out=m)
        np.multiply(v, Adam.beta2, out=v)
        np.multiply(g, g, out=a)
        np.multiply(a, (1 - Adam.beta2) * scale**2, out=a)
        np.add(v, a, out=v)
        np.sqrt(v, out=a)
        np.add(a, Adam.epsilon * root, out=a)
        np.divide(m, a, out=a)
        np.multiply(a, 1e-3 * root / (1 - Adam.beta1**self.steps), out=a)
        np.subtract(w, a, out=w)

    def close(self) -> None:
        pass


def measure_size(size: int, rule: str, budget: float, device: Device, comm: Communicator) -> dict[str, float]:
    """Seconds of a merge with its update by name, the baseline first."""
    gradient = np.random.default_rng(comm.rank).normal(size=size).astype(np.float32)
    candidates: dict[str, Steps | NumpyAdam] = {BASELINE: NumpyAdam(size, comm.on_host())}
    for name, make in MERGERS.items():
        store = _store(size, device)
        try:
            candidates[name] = Steps(make(store, comm), RULES[rule](store))
        except InputError as error:  # on all ranks alike
            if comm.rank == 0:
                print(error)
    times = _take_turns(candidates, gradient, budget, device, comm)
    for candidate in candidates.values():
        candidate.close()
    return times


def _take_turns(
    candidates: dict[str, Steps | NumpyAdam], gradient: Any, budget: float, device: Device, comm: Communicator
) -> dict[str, float]:
    given = {name: gradient if name == BASELINE else device.to_device(gradient) for name in candidates}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    began, more = time.perf_counter(), 1
    while more:
        for name, candidate in candidates.items():
            for _ in range(CALLS):
                candidate.prepare(given[name])
                device.synchronize()
                comm.meet()
                start = time.perf_counter()
                candidate.call()
                device.synchronize()
                times[name].append(time.perf_counter() - start)
        more = comm.maximum(time.perf_counter() - began < budget)
    slowest = {name: comm.gather(np.array(mine)).max(axis=0) for name, mine in times.items()}
    return {name: float(np.median(calls[CALLS // 2 :])) for name, calls in slowest.items()}  # without the warm-up


def _store(size: int, device: Device) -> ParameterStore:
    part, rest = divmod(size, LAYERS)
    return ParameterStore(device, [(f"w{n}", (part + rest * (n == 0),)) for n in range(LAYERS)])


def _show(figures: dict[str, Any]) -> None:
    print(f"{figures['ranks']} ranks, {library()}, {figures['device']}")
    for size, seconds in figures["seconds"].items():
        print(f"{size:,} weights")
        for name, value in seconds.items():
            print(f"  {name:24}{1e6 * value:10.1f} us   {seconds[BASELINE] / value:5.2f} times as fast as the first")
