"""A trained network at work on images in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.data_parallel.evaluation import EVALUATION_ROWS
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.device.clock import Clock
from mpi_parallel.nn.mlp import Network


def logits_of_array(model: Network, scaler: Scaler, images_NF: NDArray[Any]) -> NDArray[np.float32]:
    """(N, classes) logits of images: those of a row are the same bits whatever rows are asked for with it."""
    device = model.store.device
    z_NK = np.empty((len(images_NF), model.widths[-1]), np.float32)
    for start in range(0, len(images_NF), EVALUATION_ROWS):
        block = images_NF[start : start + EVALUATION_ROWS]
        padded = np.zeros((EVALUATION_ROWS, block.shape[1]), block.dtype)  # products of another shape round otherwise
        padded[: len(block)] = block
        rows = Rows(padded, np.zeros(EVALUATION_ROWS, np.int32), scaler, device)
        for _, z, _ in Replica(model, rows, Clock()).logits(rows):
            z_NK[start : start + len(block)] = device.to_host(z)[: len(block)]
    return z_NK
