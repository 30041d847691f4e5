"""--merge by name; `auto` measures here what merges a store of this size and updates it in the least time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.optimizers import Optimizer
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.options import InputError
from mpi_parallel.result_merging.accelerator import open_accelerated
from mpi_parallel.result_merging.flat import Flat
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.result_merging.registry import CANONICAL, MERGERS
from mpi_parallel.result_merging.window import Window

BUDGET = 0.03  # seconds for the rounds of one candidate
DEADLINE = 0.3  # seconds by which the last candidate should be through: ranks that share cores take long for anything
ROUNDS = 25  # at most
LARGEST = 1 << 20  # weights of the trial: far beyond the caches' size, times grow in proportion

Rule = Callable[[ParameterStore], Optimizer]
Maker = Callable[[ParameterStore, Communicator], Merger]


@dataclass
class Choice:
    """A merger, and the seconds of a merge with its update that led to it, by name; none where nothing was measured."""

    merger: Merger
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """window (measured: flat 120 us, buckets 121 us, window 25 us, sharded 130 us)."""
        table = ", ".join(f"{name} {1e6 * seconds:.0f} us" for name, seconds in self.seconds.items())
        return f"{self.merger.name} (measured: {table})" if table else self.merger.name


def open_merger(
    name: str,
    store: ParameterStore,
    comm: Communicator,
    rule: Rule,
    groups: int | None = None,
    wire: str = "float32",
) -> Choice:
    """The merger that --merge names, for this store; all ranks make the same one.

    `rule` makes the optimizer, whose work the mergers divide in different ways. Where rows come in `groups`, it is one
    of those whose bits do not depend on the ranks; where `wire` is narrow, one of those that can send such numbers.
    Raises InputError where the merger cannot serve here.
    """
    if wire == "float32" and (accelerated := open_accelerated(name, store, comm, groups)):
        return Choice(accelerated)
    makers = _makers(groups, wire)
    if name != "auto":
        return Choice(makers[name](store, comm))
    if comm.size == 1:
        return Choice(next(iter(makers.values()))(store, comm))
    seconds = measure(store, comm, rule, makers)
    return Choice(makers[min(seconds, key=seconds.__getitem__)](store, comm), seconds)


def _makers(groups: int | None, wire: str) -> dict[str, Maker]:
    """The candidates by name, the plainest first."""
    if wire != "float32":
        return {"flat": partial(Flat, wire=wire), "window": partial(Window, wire=wire)}
    if groups is None:
        return dict(MERGERS)

    def of_groups(make: Callable[[ParameterStore, Communicator, int], Merger]) -> Maker:
        return lambda store, comm: make(store, comm, groups)

    return {name: of_groups(make) for name, make in CANONICAL.items()}


def measure(store: ParameterStore, comm: Communicator, rule: Rule, makers: Mapping[str, Maker]) -> dict[str, float]:
    """Seconds of a merge, update and publication by each merger that can serve, the slowest rank's, alike on all."""
    comm.meet()
    began = perf_counter()
    trial = ParameterStore(store.device, _shapes(store))
    optimizer = rule(trial)
    seconds: dict[str, float] = {}
    longest, now = 0.0, 0.0
    for name, make in makers.items():
        if now + longest > DEADLINE:
            break
        try:
            merger = make(trial, comm)
        except InputError:  # on all ranks alike
            continue
        seconds[name] = _measure(merger, optimizer, comm)
        merger.close()
        before, now = now, _slowest([perf_counter() - began], comm)
        longest = max(longest, now - before)
    return seconds


def _measure(merger: Merger, optimizer: Optimizer, comm: Communicator) -> float:
    times = [_round(merger, optimizer, comm)]  # which also finds the memory: only what is too slow is judged by it
    times = [_round(merger, optimizer, comm) for _ in range(min(ROUNDS, int(BUDGET / _slowest(times, comm))))] or times
    return _slowest(times, comm)


def _slowest(times: list[float], comm: Communicator) -> float:
    """The median time of the slowest rank, in whole nanoseconds: the same number on all ranks."""
    return comm.maximum(max(1, round(1e9 * median(times)))) / 1e9


def _round(merger: Merger, optimizer: Optimizer, comm: Communicator) -> float:
    """A step without network: the gradients are rewritten, as a backward would, so that no cache holds the others'."""
    store = merger.store
    store.merged.fill(0)
    comm.meet()
    began = perf_counter()
    merger.ready(list(store.parameters.values()))
    for _ in range(merger.groups):
        merger.collect()
    merger.merge()
    optimizer.step(merger.owned, 1e-3)
    merger.publish()
    store.device.synchronize()
    return perf_counter() - began


def _shapes(store: ParameterStore) -> list[tuple[str, tuple[int, ...]]]:
    """Parameters like the store's, with fewer elements where it is very large."""
    shrink = min(1.0, LARGEST / max(1, store.size))
    sizes = {p.name: int(np.ceil(shrink * (p.span.stop - p.span.start))) for p in store.parameters.values()}
    return [(name, (size,)) for name, size in sizes.items()]
