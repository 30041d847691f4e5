"""A step whose loss or gradient is not finite: on which rank, in which layer, from which rows.

Nothing is watched for that beforehand. The step was not taken, so the weights are those that it started from, and the
batch can be run once more, without merging, to look at what each rank makes of it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.device import Array
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.store import BAD, LOSS, ParameterStore

if TYPE_CHECKING:
    from mpi_parallel.training.run import Run

LISTED = 4  # rows of a rank that are named


def diagnose(run: Run, batch: Batch) -> list[str]:
    """What was bad on each rank where something was; all ranks call this together and learn it all."""
    if run.training.holding == "streaming":
        return ["the rows were streamed and are gone; with --holding resident the rank, layer and rows can be told"]
    return [text for text in run.comm.gather_text(_mine(run, batch)) if text]


def _mine(run: Run, batch: Batch) -> str:
    """What is bad on this rank, nothing if all is well. Ranks that hold parts of a model go through this alike."""
    loss, layers = _rerun(run, batch)
    if np.isfinite(loss) and not layers:
        return ""
    told = f"rank {run.comm.rank} on {platform.node()}: loss {loss}"
    if layers:
        told += (
            f", gradient not finite in layer {', '.join(map(str, layers))} of 0 to {len(run.engine.model.widths) - 2}"
        )
    if not isinstance(run.engine.model, MLP):
        return told
    bad = []
    for row in _bad_rows(run, batch):
        bad.append(row)
        if len(bad) == LISTED:
            break
    if not bad:
        return f"{told}; only the sum over its {len(batch.index)} rows, of none by itself"
    rows = run.training.rows_of_file(run.engine.store.device.to_host(batch.index)[bad])
    more = " and perhaps more" if len(bad) == LISTED else ""
    return f"{told}; row {', '.join(map(str, rows))}{more} of {run.training.name}, {_origin(run, batch, bad[0])}"


def _rerun(run: Run, batch: Batch) -> tuple[float, list[int]]:
    """Run the batch forward and backward: its loss on this rank, and the layers whose gradient is not finite."""
    store, loss, layers = run.engine.store, 0.0, set[int]()

    def look() -> None:
        nonlocal loss
        tail = store.device.to_host(store.tail)
        loss += float(tail[LOSS])
        for name, parameter in store.parameters.items():
            if not _finite(store, parameter.gradient):
                layers.add(int(name[1:]))
        if not np.isfinite(tail[BAD]) and not layers:
            layers.update(int(name[1:]) for name in store.parameters)

    run.engine.run(batch, _nobody, look)
    return loss, sorted(layers, reverse=True)


def _bad_rows(run: Run, batch: Batch) -> Iterator[int]:
    """Places in the batch of rows that are bad by themselves, found by halving."""
    spans = [slice(0, len(batch.index))]
    while spans:
        span = spans.pop()
        loss, layers = _rerun(run, Batch(batch.index[span], batch.keys[span]))
        if np.isfinite(loss) and not layers:
            continue
        if span.stop - span.start == 1:
            yield span.start
            continue
        middle = (span.start + span.stop) // 2
        spans += [slice(middle, span.stop), slice(span.start, middle)]


def _origin(run: Run, batch: Batch, place: int) -> str:
    """Where a row goes bad on its way forward."""
    engine, one = run.engine, slice(place, place + 1)
    engine.model.workspace.reset()
    y, _ = run.training.rows.gather(engine.model.workspace, batch.index[one], batch.keys[one])
    if not _finite(engine.store, y):
        return "whose standardised pixels are not finite"
    for number, layer in enumerate(engine.model.inference.layers):
        y, _ = layer.forward(y)
        if not _finite(engine.store, y):
            return f"which first shows in the output of layer {number}"
    return "whose outputs are finite, but not its loss or gradient"


def _finite(store: ParameterStore, array: Array) -> bool:
    numbers = store.device.to_host(array)
    if numbers.dtype == np.uint16:  # bfloat16, of which NumPy knows the bits: the upper half of float32's
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return bool(np.isfinite(numbers).all())


def _nobody(parameters: object) -> None:
    """Nothing is merged."""
