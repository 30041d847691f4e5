"""Starting from weights that somebody else has trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpi_parallel.options import InputError
from mpi_parallel.training.log import logger

if TYPE_CHECKING:
    from mpi_parallel.training.run import Run

TOLERANCE = 1e-3  # of the deviation, by which a standardisation may differ without a word


def start(run: Run) -> None:
    """Put the weights that --start names into the run's network, of which this rank may have a part; nothing else.

    All ranks together. Raises InputError, naming both sides, where the networks are not the same.
    """
    path = run.config.run.start
    if path is None:
        return
    from mpi_parallel.training.checkpoints.saved import open_saved  # here, because most runs start anew

    saved = open_saved(path, run.comm, "--start")
    trained = saved.about
    here, there = (" - ".join(map(str, widths)) for widths in (run.engine.model.widths, trained.widths))
    if here != there:
        hidden = " ".join(map(str, trained.widths[1:-1]))
        raise InputError(
            f"--start {path}: the network there is {there} and here {here}; --hidden {hidden} makes its layers"
        )
    facts = saved.put_into(run.engine.model)
    run.comm.meet()  # ranks that share weights have all written theirs, which are the same
    scaler = run.training.scaler
    if trained.mean is None or trained.std is None:
        logger.warning("--start %s does not tell how its images were standardised", path)
    elif (
        max(np.abs((trained.mean - scaler.mean) / scaler.std).max(), np.abs(trained.std / scaler.std - 1).max())
        > TOLERANCE
    ):
        logger.warning("--start %s was trained on images that were standardised in another way than these", path)
    logger.info("started from the weights in %s, SHA-256 %s", path, facts["weights_sha256"])
