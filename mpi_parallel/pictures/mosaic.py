"""Many small images in one: a hundred axes would take a second to draw."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def drawable(shape: tuple[int, ...]) -> bool:
    """Whether numbers of this shape are an image that can be shown: (H, W), or (H, W, C) with 1, 3 or 4 colours."""
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))


def tiles(images: NDArray[Any], columns: int, gap: int, empty: float) -> NDArray[Any]:
    """Images (M, H, W[, C]) side by side in rows of `columns`, with `gap` pixels `empty` below and right."""
    count, height, width, *colours = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap), columns * (width + gap), *colours), empty, np.float64)
    for number, image in enumerate(images):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet[..., 0] if colours == [1] else sheet


def unit(images: NDArray[Any]) -> NDArray[np.float64]:
    """Images (M, ...), each stretched to [0, 1]."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
    stretched: NDArray[np.float64] = ((flat - low) / np.maximum(high - low, 1e-12)).reshape(images.shape)
    return stretched
