"""What is taken for what: the confusion matrix, with the mistakes that the network was surest of."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpi_parallel.options import InputError
from mpi_parallel.pictures import style
from mpi_parallel.pictures.mosaic import drawable, tiles, unit
from mpi_parallel.pictures.records import Gallery, Record

MOST_NUMBERS = 20  # classes of which every count is written
COLUMNS = 6


def confusion(run: Record) -> Any:
    """The matrix of the test rows, a row a true class, shaded by its share of the class; and the surest mistakes.

    Raises InputError where the run has kept none.
    """
    gallery = run.gallery
    if gallery is None or not gallery.confusion.sum():
        raise InputError(f"{run.name}: no confusion matrix: it needs test rows, a run to its end, and --report")
    with_images = len(gallery.images) > 0 and drawable(gallery.shape)
    with style.figure(12 if with_images else 5.6, 5) as picture:
        left, right = picture.subplots(1, 2, width_ratios=[1, 1.15]) if with_images else (picture.subplots(), None)
        _matrix(left, gallery)
        if right is not None:
            _mistakes(right, gallery)
    return picture


def _matrix(axes: Any, gallery: Gallery) -> None:
    counts = gallery.confusion
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    classes = np.arange(len(counts))
    axes.set(xlabel="taken for", ylabel="is", title=f"confusion of {counts.sum():,} test rows")
    axes.spines[:].set_visible(False)
    if len(counts) > MOST_NUMBERS:
        return
    axes.set_xticks(classes, gallery.classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(classes, gallery.classes)
    axes.tick_params(length=0)
    for row, column in np.argwhere(counts):
        dark = share[row, column] > 0.5
        text = {"color": "white" if dark else "black", "fontsize": 8, "fontweight": "bold" if row == column else None}
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", **text)


def _mistakes(axes: Any, gallery: Gallery) -> None:
    """Thumbnails with what they are, what they were taken for and how surely."""
    height, width = gallery.shape[:2]
    gap = max(height, width) * 2 // 3  # room for the words
    sheet = tiles(unit(gallery.images), COLUMNS, gap, 1.0)
    axes.imshow(sheet, cmap="gray" if sheet.ndim == 2 else None, vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title("the mistakes that it was surest of, and how sure")
    _captions(axes, gallery, height + gap, width + gap, height)


def _captions(axes: Any, gallery: Gallery, down: int, across: int, height: int) -> None:
    names = [name if len(name) <= 11 else name[:10] + "…" for name in gallery.classes]
    for number in range(len(gallery.images)):
        left, top = (number % COLUMNS) * across, (number // COLUMNS) * down + height
        is_, taken = names[gallery.labels[number]], names[gallery.predicted[number]]
        axes.text(
            left, top, f"{is_}\nnot {taken}\n{gallery.probability[number]:.3f}", fontsize=7, va="top", linespacing=1.0
        )  # fmt: skip
