"""What the benchmarks share: timing by rounds, and the figures as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from mpi_parallel.device import Device
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import to_tables
from mpi_parallel.training.banner import library, versions

ROUNDS = 7  # the median of so many is told


def timed(
    call: Callable[[], Any], budget: float, device: Device, comm: Communicator, begin: Callable[[], None] = lambda: None
) -> tuple[float, int]:
    """Seconds of one call, the median of ROUNDS rounds after a warm-up; and the calls of the last round."""
    for _ in range(3):
        call()
    device.synchronize()
    once = max(_round(call, 3, device, comm), 1e-6)
    calls = max(1, comm.maximum(int(budget / ROUNDS / once)))
    rounds = []
    for _ in range(ROUNDS):
        begin()
        rounds.append(_round(call, calls, device, comm))
    return median(rounds), calls


def _round(call: Callable[[], Any], calls: int, device: Device, comm: Communicator) -> float:
    comm.maximum(0)  # ranks start together
    began = time.perf_counter()
    for _ in range(calls):
        call()
    device.synchronize()
    return (time.perf_counter() - began) / calls


def surroundings(config: Any, device: Device, threads: int) -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    return {
        "mpi": library(),
        "device": device.describe(),
        "threads": threads,
        "config": to_tables(config),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write(figures: dict[str, Any], to: str | None) -> None:
    """The figures as JSON, where a file is asked for."""
    if to:
        Path(to).parent.mkdir(parents=True, exist_ok=True)
        Path(to).write_text(json.dumps(figures, indent=1) + "\n")
