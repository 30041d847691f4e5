"""A trained network at work: the logits of rows, block by block, the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.loader import EVALUATION_ROWS, Rows
from mpi_parallel.data_parallel.scaling import Scaler
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


def logits_of_array(model: Network, scaler: Scaler, images_NF: NDArray[Any]) -> NDArray[np.float32]:
    """(N, classes) logits of images in memory: those of a row are the same bits whatever rows are asked for with it."""
    device = model.store.device
    z_NK = np.empty((len(images_NF), model.widths[-1]), np.float32)
    for start in range(0, len(images_NF), EVALUATION_ROWS):
        block = images_NF[start : start + EVALUATION_ROWS]
        padded = np.zeros((EVALUATION_ROWS, block.shape[1]), block.dtype)  # products of another shape round otherwise
        padded[: len(block)] = block
        rows = Rows(padded, np.zeros(EVALUATION_ROWS, np.int32), scaler, device)
        for _, z, _ in logits_of(model, rows):
            z_NK[start : start + len(block)] = z[: len(block)]
    return z_NK
