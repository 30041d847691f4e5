"""From what was read to a file of our layout: who goes into which split, the writing, the standardisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.dataset import SPLITS
from mpi_parallel.data_parallel.intake import Intake
from mpi_parallel.data_parallel.outfile import edit
from mpi_parallel.data_parallel.parts import Parts, merge_parts
from mpi_parallel.data_parallel.scaling import Scaler, moments_of_pieces, standardise
from mpi_parallel.data_parallel.splits import stratified
from mpi_parallel.data_parallel.writing import Layout, OneFile, Writer, part_names, remove_parts, whole_file
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block
from mpi_parallel.options import InputError

SHARDS = 64  # parts of the training rows whose moments are computed apart
MOST_MOMENTS = 1 << 23  # features of all shards together: bounds the memory for wide images
PIECE = 1 << 15  # numbers that are taken together: as float64 they stay in the core's cache
READ = 1 << 22  # numbers that are read together


@dataclass(frozen=True)
class Plan:
    """Where the good rows go: `part` (N,) uint8 is each one's place in SPLITS."""

    part: NDArray[np.uint8]
    before: NDArray[np.int64]  # (units + 1, splits): rows of each split before each unit
    layout: Layout


def plan(intake: Intake, shares: Sequence[float], seed: int, dtype: np.dtype[Any], scale: str) -> Plan:
    """Give every row its split: that of its source, or a stratified share of the pile. Collective.

    Raises InputError where `scale` wants training rows and there are none.
    """
    part = intake.comm.broadcast(_parts(intake, shares, seed) if intake.comm.rank == 0 else None)
    before = np.zeros((len(intake.units) + 1, len(SPLITS)), np.int64)
    for line in range(len(intake.units)):
        here = part[intake.starts[line] : intake.starts[line + 1]]
        before[line + 1] = before[line] + np.bincount(here, minlength=len(SPLITS))
    layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for name, length in zip(SPLITS, before[-1].tolist(), strict=True):
        if length:
            layout[f"{name}/images"] = ((length, *intake.shape), dtype)
            layout[f"{name}/labels"] = ((length,), _label_dtype(intake.labels))
            layout[f"{name}/source_rows"] = ((length,), np.dtype(np.int64))
    if scale != "none" and "train/images" not in layout:
        raise InputError(f"--scale {scale} is computed from the training rows, and there are none: see --split")
    return Plan(part, before, layout)


def _parts(intake: Intake, shares: Sequence[float], seed: int) -> NDArray[np.uint8]:
    part = np.zeros(len(intake.labels), np.uint8)
    source = np.repeat(intake.units[:, 0], intake.units[:, 2])
    fixed = [None if s.split is None else SPLITS.index(s.split) for s in intake.sources]
    for number, split in enumerate(fixed):
        part[source == number] = split or 0
    pile = np.flatnonzero(np.isin(source, [number for number, split in enumerate(fixed) if split is None]))
    for number, rows in enumerate(stratified(intake.labels[pile], shares, seed)):
        part[pile[rows]] = number
    return part


def _label_dtype(labels: NDArray[np.int32]) -> np.dtype[Any]:
    return np.dtype(np.uint8 if labels.max() < 256 else np.uint16 if labels.max() < 65536 else np.int32)


def write(
    target: Path, intake: Intake, plan: Plan, as_parts: bool, merge: bool, finish: Callable[[Path], None]
) -> None:
    """Write all rows under another name, let `finish` add to that file, and only then give it its own name.

    Collective; `finish(path)` is called on every rank.
    """
    comm = intake.comm
    old = part_names(target) if comm.rank == 0 else []
    with whole_file(target, comm, [source.path for source in intake.sources]) as unfinished:
        as_parts = as_parts and comm.size > 1
        writer: Writer
        if as_parts:
            writer = Parts(unfinished, target, plan.layout, _rows_here(intake, plan), not merge, comm)
        else:
            writer = OneFile(unfinished, plan.layout, comm)
        _write_rows(writer, intake, plan)
        writer.finish()
        if as_parts and merge and comm.rank == 0:
            merge_parts(unfinished, plan.layout)
        comm.maximum(0)
        finish(unfinished)
    if comm.rank == 0:
        remove_parts(target.parent, old)


def _rows_here(intake: Intake, plan: Plan) -> dict[str, int]:
    """How many rows of each dataset this rank has."""
    counts = sum((np.bincount(plan.part[w.start : w.stop], minlength=3) for _, w in intake.placed()), np.zeros(3, int))
    return {name: int(counts[SPLITS.index(name.partition("/")[0])]) for name in plan.layout}


def _write_rows(writer: Writer, intake: Intake, plan: Plan) -> None:
    for batch, where in intake.placed():
        images = intake.store.get(batch, intake.shape)
        line, part = intake.line(batch), plan.part[where.start : where.stop]
        columns = {
            "images": images,
            "labels": intake.labels[where.start : where.stop],
            "source_rows": batch.rows + intake.first_row(batch),
        }
        for number, name in enumerate(SPLITS):
            chosen = np.flatnonzero(part == number)
            for column, values in columns.items():
                if len(chosen):
                    writer.write(f"{name}/{column}", int(plan.before[line, number]), values[chosen])


def describe(path: Path, facts: dict[str, Any], scale: str, comm: Communicator) -> None:
    """Write the root attributes of a file whose rows are there, the moments of its training images among them."""
    moments = {}
    if scale != "none":
        with h5py.File(path, locking=False) as file:
            scaler = scaler_of(file["train/images"], scale, comm)
        moments = {"mean": scaler.mean, "std": scaler.std}
        comm.maximum(0)  # all have closed it
    if comm.rank == 0:
        with edit(path) as file:
            for name, value in {"format_version": 1, **facts, **moments}.items():
                if value is not None:
                    file.attrs[name] = value


def scaler_of(images: h5py.Dataset, scale: str, comm: Communicator) -> Scaler:
    """The `scalar` or per-`feature` scaler of a dataset (N, ...), in one pass; every rank takes some of its shards.

    Neither the shards nor the pieces in which they are read depend on the number of ranks.
    """
    size, rows = prod(images.shape[1:]), len(images)
    features = 1 if scale == "scalar" else size
    count = max(1, min(SHARDS, rows, MOST_MOMENTS // features))
    shards = [block(rows, count, shard) for shard in range(count)]
    mine = {
        shard: moments_of_pieces(_pieces(images, shards[shard], features))
        for shard in block(count, comm.size, comm.rank)
    }
    return standardise(mine, [len(shard) * size // features for shard in shards], features, comm)


def _pieces(images: h5py.Dataset, rows: range, features: int) -> Iterator[NDArray[Any]]:
    size = prod(images.shape[1:])
    many, step = max(1, READ // size), max(1, PIECE // features)
    for start in range(rows.start, rows.stop, many):
        read = images[start : min(start + many, rows.stop)].reshape(-1, features)
        for first in range(0, len(read), step):
            yield read[first : first + step]
