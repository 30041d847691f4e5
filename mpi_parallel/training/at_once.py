"""Whether rows of a small network go through all layers at once, in kernels of their own, or layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.device.relay import Work
from mpi_parallel.result_merging.merger import Merger
from mpi_parallel.training.log import logger


def is_faster_at_once(engine: Replica, merger: Merger, batch: Batch, prepare: Callable[[Work], Work]) -> bool:
    """Try both on the rows of this batch as steps will do them, captured or not (`prepare`).

    The store and the workspace are left as a step leaves them.
    """
    device = engine.store.device
    if merger.collects or not (device.measures and engine.fits_at_once(batch)):
        return False  # groups that are collected take the way that depends on nothing
    layers = partial(engine.compute, batch, merger.ready, merger.collect, cleared=True)
    at_once = partial(engine.compute_at_once, batch)
    at_once()  # finds its memory, of which it wants more
    engine.workspace.reset()
    by_layer, whole = device.time([prepare(work) for work in (layers, at_once)])
    logger.info(f"{len(batch.index)} rows take {1e6 * by_layer:.1f} us layer by layer, {1e6 * whole:.1f} us at once")
    return whole < by_layer
