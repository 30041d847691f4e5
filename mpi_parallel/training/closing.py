"""The last things of a run: what is kept for pictures, the report, and what a person is told."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from mpi_parallel.pictures.page import write_page
from mpi_parallel.pictures.records import Record
from mpi_parallel.training.gallery import MOST_CLASSES, Observer
from mpi_parallel.training.log import logger

if TYPE_CHECKING:
    from mpi_parallel.training.fit import Run


def open_observer(run: Run) -> Observer | None:
    """Who looks on at the final evaluation, where a report is to be written."""
    classes = run.engine.model.widths[-1]
    if not run.config.run.report or classes > MOST_CLASSES:
        return None
    return Observer(run.data, classes, run.comm, run.speaks)


def report(run: Run) -> None:
    """Write report.html; rank 0 does, and a page that cannot be written is no reason to fail."""
    if run.config.run.report and run.comm.rank == 0:
        begun, path = perf_counter(), Path(run.folder.path) / "report.html"
        try:
            write_page(Record(run.folder.path), path)
        except Exception as error:  # matplotlib's complaints are of many kinds, and the run is over and well kept
            logger.warning("report.html could not be written: %r", error)
            return
        logger.info(f"report: {path} (written in {perf_counter() - begun:.1f} s)")
