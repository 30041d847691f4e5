"""What the units of the first layer look for: their weights as images."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpi_parallel.options import InputError
from mpi_parallel.pictures import style
from mpi_parallel.pictures.mosaic import drawable, tiles
from mpi_parallel.pictures.records import Record

COLUMNS = 12


def weights(run: Record) -> Any:
    """The weights of the first units, each as an image, on one scale around zero; of colours their mean.

    Raises InputError where the run has kept none, or its rows are no images.
    """
    gallery = run.gallery
    if gallery is None or not drawable(gallery.shape):
        raise InputError(f"{run.name}: there are no weights to show: they need images, a run to its end, and --report")
    units = gallery.weights.T.reshape(-1, *gallery.shape)
    if units.ndim == 4:
        units = units.mean(axis=3)
    most = float(np.quantile(np.abs(units), 0.995)) or 1.0
    sheet = np.ma.masked_invalid(tiles(units, COLUMNS, max(1, units.shape[1] // 12), np.nan))
    with style.figure(9, 0.5 + 8 * sheet.shape[0] / sheet.shape[1]) as picture:
        axes = picture.subplots()
        shown = axes.imshow(sheet, cmap="PuOr_r", vmin=-most, vmax=most, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(f"weights of the first {len(units)} units of the first layer")
        bar = picture.colorbar(shown, ax=axes, shrink=0.7, aspect=30, pad=0.01)
        bar.outline.set_visible(False)
    return picture
