"""A trained network at work: the logits of rows, block by block, the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.loader import EVALUATION_ROWS, Rows
from mpi_parallel.nn.mlp import Network


def logits_of(model: Network, rows: Rows) -> Iterator[tuple[NDArray[Any], NDArray[np.float32], NDArray[np.int32]]]:
    """(places among the rank's rows (B,), logits (B, classes), labels (B,)) of all its rows, in order, on the host.

    Ranks own whole blocks of EVALUATION_ROWS, and products of one shape round alike, whoever computes them.
    """
    rows.rewind()
    for start in range(0, len(rows), EVALUATION_ROWS):
        model.workspace.reset()
        places = np.arange(start, min(start + EVALUATION_ROWS, len(rows)))
        device = model.store.device
        x, t = rows.gather(model.workspace, device.to_device(places))
        z, _ = model.inference.forward(x)
        # The workspace will be used again, and on the host nothing has been copied yet.
        yield places, device.to_host(z).copy(), device.to_host(t).copy()
