"""Random changes of training images, as expressions: shift, mirror and erase, each image by its key alone.

Shapes: B images of H x W pixels of C colours. What comes in from outside, or is erased, is 0 in the file's numbers.
Sums, products, quotients and roots are rounded once each, and there is nothing else here, so all devices draw the same.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from mpi_parallel.device.hashing import combine, combine_int
from mpi_parallel.device.interface import Array, Augmentation

AUGMENT = 6  # what keys are hashed for; see data_parallel/order.py
DOWN, RIGHT, FLIP, ERASE, AREA, ASPECT, TOP, LEFT = range(8)  # the purposes
SMALLEST, LARGEST = 0.02, 1 / 3  # area of an erased rectangle (Zhong et al., Random Erasing, 2017)
FLATTEST, SPREAD = 0.5477225575051661, 1.1989476363991853  # sqrt(0.3) and log(sqrt(3.3 / 0.3)), of its aspect's root
TERMS = 8  # of the exponential series: enough for 1e-5


def augmented(xp: ModuleType, images_BF: Array, keys_B: Array, how: Augmentation) -> Array:
    """The changed images (B, H W C), in the type of the given ones."""
    B, H, W, C = len(keys_B), how.height, how.width, how.channels
    rows_H, columns_W = xp.arange(H)[None, :], xp.arange(W)[None, :]
    down_B, right_B = (_whole(keys_B, purpose, 2 * how.shift + 1) - how.shift for purpose in (DOWN, RIGHT))
    mirrored_B = (_random(keys_B, FLIP) < 0.5) & how.flip
    y_BH = rows_H + down_B[:, None]
    x_BW = xp.where(mirrored_B[:, None], W - 1 - columns_W, columns_W) + right_B[:, None]
    inside = ((y_BH >= 0) & (y_BH < H))[:, :, None] & ((x_BW >= 0) & (x_BW < W))[:, None, :]
    seen = inside & ~_erased(xp, keys_B, how)
    pixel = xp.where(seen, (y_BH * W)[:, :, None] + x_BW[:, None, :], 0)
    colours = images_BF.reshape(B, H * W, C)[xp.arange(B)[:, None, None], pixel]
    changed: Array = xp.where(seen[..., None], colours, xp.zeros(1, images_BF.dtype)).reshape(images_BF.shape)
    return changed


def _erased(xp: ModuleType, keys_B: Array, how: Augmentation) -> Array:
    """(B, H, W): which pixels lie in a rectangle of random size and place; too large ones are cut off."""
    H, W = how.height, how.width
    side = xp.sqrt(H * W * (SMALLEST + (LARGEST - SMALLEST) * _random(keys_B, AREA)))
    root = FLATTEST * _exponential(_random(keys_B, ASPECT) * SPREAD)
    height, width = xp.clip(xp.rint(side * root), 1, H), xp.clip(xp.rint(side / root), 1, W)
    top, left = _whole(keys_B, TOP, H - height + 1), _whole(keys_B, LEFT, W - width + 1)
    chosen = _random(keys_B, ERASE) < how.erase
    rows, columns = xp.arange(H)[None, :], xp.arange(W)[None, :]
    down = (rows >= top[:, None]) & (rows < (top + height)[:, None]) & chosen[:, None]
    across = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    erased: Array = down[:, :, None] & across[:, None, :]
    return erased


def _exponential(power: Array) -> Array:
    """e^power by its series, as libraries round it each in their own way."""
    sum_B = power * 0 + 1
    for term in range(TERMS, 0, -1):
        sum_B = 1 + power * sum_B / term
    return sum_B


def _random(keys_B: Array, purpose: int) -> Array:
    """(B,) float64 in [0, 1)."""
    uniform: Array = combine(keys_B, np.uint32(combine_int(AUGMENT, purpose))) * 2.0**-32
    return uniform


def _whole(keys_B: Array, purpose: int, below: Array | int) -> Array:
    """(B,) whole numbers from 0 on."""
    return (_random(keys_B, purpose) * below).astype(np.int64)
