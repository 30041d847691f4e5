"""The learning rate as a pure function of the step."""

from __future__ import annotations

from mpi_parallel.device.interface import Schedule
from mpi_parallel.device.rule_expressions import rate_of


def learning_rate(step: int, *, base: float, schedule: str, warmup: int, total: int) -> float:
    """The rate of step `step` (from 0) of `total`: a linear warm-up to `base`, then constant or a cosine to zero.

    The cosine is SGDR's without restarts (Loshchilov and Hutter 2017).
    """
    return rate_of(step, Schedule(base, schedule == "cosine", warmup, total))
