"""Predict on all ranks: `mpirun -n 4 python -m mpi_parallel.predict --checkpoint runs/NAME --data FILE.h5 --to OUT.h5`.

The rows come out in the order in which they are in the input, whatever the number of ranks, and need no labels.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mpi_parallel.data_parallel.folder import PictureSplit
from mpi_parallel.data_parallel.outfile import edit
from mpi_parallel.data_parallel.writing import Layout, OneFile, whole_file
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import InputError, option
from mpi_parallel.options.command_line import parse
from mpi_parallel.result_merging.confusion import softmax
from mpi_parallel.training.applied import Applied, ApplyOptions
from mpi_parallel.training.banner import versions

SENTENCE = "Predict the classes of images: writes an HDF5 file of index, label and probabilities, in the input's order."
FORMAT = "mpi_parallel predictions 1"


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """what comes out"""

    to: str = option(..., "file to write; it appears only once it is whole", name="OUT.h5")
    split: str | None = option(
        None, "rows to predict; by default all of a file without splits, else its test split",
        choices=("train", "validation", "test"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """All options of `python -m mpi_parallel.predict`."""

    apply: ApplyOptions
    predict: PredictOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Compute and write on all ranks; the exit status."""
    began = time.perf_counter()
    config = parse(PredictConfig, arguments, "mpi_parallel.predict", SENTENCE, speaks=world.rank == 0)
    target = Path(config.predict.to)
    with whole_file(target, world, [config.apply.data, config.apply.checkpoint]) as unfinished:
        applied = Applied(config.apply, config.predict.split, world)
        if not len(applied.split):
            raise InputError(f"{config.apply.data}: there are no rows in {applied.split.images}")
        _write(applied, unfinished, world)
        if world.rank == 0:
            _describe(applied, unfinished, world)
    if world.rank == 0:
        seconds = time.perf_counter() - began
        what = "" if isinstance(applied.split, PictureSplit) else f":{applied.split.images}"
        print(
            f"{target}: {len(applied.split):,} rows of {config.apply.data}{what}; "
            f"{seconds:.2f} s on {world.size} rank{'s' * (world.size > 1)}",
            flush=True,
        )
    applied.close()
    return 0


def _write(applied: Applied, path: Path, world: Communicator) -> None:
    """Every rank puts its rows at their places."""
    rows, classes = len(applied.split), applied.network.widths[-1]
    layout: Layout = {
        "index": ((rows,), np.dtype(np.int64)),
        "label": ((rows,), np.dtype(np.int32)),
        "probabilities": ((rows, classes), np.dtype(np.float32)),
    }
    writer = OneFile(path, layout, world)
    listed = applied.split.rows
    for places, z, _ in applied.logits():
        writer.write("index", int(places[0]), places if listed is None else listed[places])
        writer.write("label", int(places[0]), z.argmax(axis=1))
        writer.write("probabilities", int(places[0]), softmax(z))
    writer.finish()


def _describe(applied: Applied, path: Path, world: Communicator) -> None:
    """Where the predictions come from."""
    facts = {
        "format": FORMAT,
        "source": applied.split.path,
        "images": applied.split.images,
        **applied.facts,
        "versions": json.dumps(versions()),
        "ranks": world.size,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    with edit(path) as file:
        file.attrs.update(facts)
        if applied.classes:
            file.attrs["classes"] = applied.classes
        if isinstance(applied.split, PictureSplit):
            names = [str(name.relative_to(applied.split.path)) for name in applied.split.files]
            file.create_dataset("file", data=names, dtype=h5py.string_dtype())


if __name__ == "__main__":
    launch(main)
