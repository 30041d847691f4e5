"""The last things of a run: what is kept for pictures, the report, and what a person is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from mpi_parallel.training.gallery import MOST_CLASSES, Observer
from mpi_parallel.training.log import logger

if TYPE_CHECKING:
    from mpi_parallel.training.run import Run

WELL = ("finished", "target", "early-stop")  # reasons to end after which the run is tested, and there is a result
ASKED = ("signal", "time-limit")  # reasons after which the run is to go on later


def open_observer(run: Run) -> Observer | None:
    """Who looks on at the final evaluation, where a report is to be written."""
    classes = run.engine.model.widths[-1]
    if not run.config.run.report or classes > MOST_CLASSES:
        return None
    return Observer(run.data, classes, run.comm, run.speaks)


def leave(run: Run, reason: str, observer: Observer | None) -> None:
    """Write what is for people, and tell where all is and how to go on; all ranks together."""
    folder = run.folder.path
    logger.info(f"kept in     {folder}")
    if traced := run.trace.write(folder):
        logger.info(f"trace       {folder / traced}: open it in ui.perfetto.dev")
    keep = observer.merge(run.engine.model.pieces()) if observer and reason in WELL else None
    # Who asked to stop wants no time spent on pictures.
    if run.config.run.report and reason not in ASKED and run.comm.rank == 0:
        _report(folder, keep)
    if run.config.run.tensorboard:
        logger.info(f"curves      tensorboard --logdir {folder}")
    if run.saver.saved is None:
        return
    if reason in WELL:
        if run.validation is not None and run.patience.since:
            earlier = f"validation loss {run.patience.best:.4f}, {run.patience.since} epochs before the last"
            logger.info(f"best        best.h5, of {earlier}: what evaluate and predict take")
        logger.info(f"use it with python -m mpi_parallel.predict --checkpoint {folder} --data FILE.h5 --to OUT.h5")
    if reason in ASKED:
        command = f"mpirun -n {run.comm.size} python -m mpi_parallel.train --config {folder / 'config.toml'}"
        logger.info(f"go on with  {command} --out {folder} --resume auto")


def _report(folder: Path, keep: Callable[[Path], None] | None) -> None:
    """Write gallery.h5 and report.html; a run that is over and well kept does not fail because they cannot be."""
    from mpi_parallel.pictures.page import write_page  # here, as only one rank draws, and only at the end
    from mpi_parallel.pictures.records import Record

    begun, path = perf_counter(), folder / "report.html"
    try:
        if keep is not None:
            keep(folder)
        write_page(Record(folder), path)
    except Exception as error:  # matplotlib's complaints are of many kinds
        logger.warning("report.html could not be written: %r", error)
        return
    logger.info(f"report      {path} (took {perf_counter() - begun:.1f} s; --no-report spares it)")
