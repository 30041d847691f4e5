"""What the benchmarks share: how they begin, how they take times, where the figures go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpi_parallel.config.running import DeviceOptions
from mpi_parallel.device import Device
from mpi_parallel.device.clock import Clock
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import to_tables
from mpi_parallel.training.banner import settle_threads, versions
from mpi_parallel.training.devices import settle_device

ROUNDS = 7  # the median of so many is told


def settle(options: DeviceOptions, world: Communicator) -> tuple[Device, int]:
    """The device that was asked for, and how many threads a rank has, as in training."""
    node = world.node()
    threads = settle_threads(options.threads, node)
    return settle_device(options.device, node, world, options.precision), threads


def keep(figures: dict[str, Any], config: Any, to: str | None, world: Communicator) -> None:
    """Write the figures as JSON, with what they depend on, where a file was named."""
    if world.rank == 0 and to:
        figures |= {"config": to_tables(config), "versions": versions(), "date": time.strftime("%Y-%m-%d")}
        Path(to).parent.mkdir(parents=True, exist_ok=True)
        Path(to).write_text(json.dumps(figures, indent=1) + "\n")


def measure(
    call: Callable[[], Any], budget: float, device: Device, comm: Communicator, clock: Clock | None = None
) -> tuple[float, dict[str, float]]:
    """Seconds of one call, the median of ROUNDS rounds after a warm-up, and those of its phases in that round."""
    clock = clock or Clock()
    for _ in range(3):
        call()
    device.synchronize()
    once = max(_round(call, 3, device, comm), 1e-6)
    calls = max(1, comm.maximum(int(budget / ROUNDS / once)))
    rounds = []
    for _ in range(ROUNDS):
        clock.reset()
        seconds = _round(call, calls, device, comm)
        rounds.append((seconds, {name: spent / calls for name, spent in clock.seconds.items()}))
    return sorted(rounds, key=lambda told: told[0])[ROUNDS // 2]


def _round(call: Callable[[], Any], calls: int, device: Device, comm: Communicator) -> float:
    comm.meet()  # ranks start together
    began = time.perf_counter()
    for _ in range(calls):
        call()
    device.synchronize()
    return (time.perf_counter() - began) / calls
