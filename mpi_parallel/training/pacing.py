"""Who sets the pace of a run's steps: the device, or the host call by call."""

from __future__ import annotations

from mpi_parallel.config import TrainConfig
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.device.interface import Schedule
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.optimizers import Optimizer
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.training.ahead import Steps
from mpi_parallel.training.captured import AHEAD, CapturedSteps
from mpi_parallel.training.log import logger
from mpi_parallel.training.step import Engine, HostSteps
from mpi_parallel.training.step import Merger as StepMerger


def open_steps(
    engine: Engine, merger: StepMerger, optimizer: Optimizer, options: TrainConfig, total: int, begun: int = 0
) -> Steps:
    """Who takes the steps of a run of `total`, of which `begun` are behind: the device, or the host call by call."""
    rule, device = options.optimizer, engine.store.device
    if device.kind == "cpu":
        if options.device.graphs and isinstance(engine, Replica) and not merger.overlaps:
            engine.replay()
        return HostSteps(engine, merger, optimizer, rule, total)
    reason = why_not(engine, merger)
    if reason is None:
        assert isinstance(engine, Replica)
        assert isinstance(merger, Merger)
        schedule = Schedule(rule.lr, rule.schedule == "cosine", rule.warmup, total, rule.clip_norm)
        ahead = 0 if options.run.survive else AHEAD  # survivors take up the newest step that anybody has ended
        return CapturedSteps(engine, merger, optimizer, schedule, options.device.graphs, begun, ahead)
    logger.info("no CUDA graphs: %s", reason)
    return HostSteps(engine, merger, optimizer, rule, total)


def why_not(engine: Engine, merger: StepMerger) -> str | None:
    """Why a device cannot take the steps at its own pace; None where it can."""
    if not (isinstance(engine, Replica) and isinstance(engine.model, MLP) and isinstance(merger, Merger)):
        return "the model is split over ranks, which talk within a step"
    if merger.relay() is None:
        return f"--merge {merger.name} sends during backward"
    return None
