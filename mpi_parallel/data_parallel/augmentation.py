"""Random changes of training images, off by default: shift, horizontal flip and erasing.

What happens to an image is a pure function of its key, which is made of seed, epoch and position (order.row_keys), so
the ranks do not matter. Images are changed as they are in the file, before they are standardised: what comes in from
outside, or is erased, is 0 there.
"""

from __future__ import annotations

import numpy as np

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.device import Array
from mpi_parallel.device.hashing import combine, combine_int
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.options import InputError

AUGMENT = 6  # what keys are hashed for; see order.py
AREA, ASPECT = (0.02, 1 / 3), (0.3, 3.3)  # of an erased rectangle (Zhong et al., Random Erasing, 2017)


class Augmentation:
    """Shifts by up to `shift` pixels each way, mirrors every other image where `flip`, erases in a share of `erase`."""

    def __init__(self, shape: tuple[int, ...], shift: int = 0, flip: bool = False, erase: float = 0.0) -> None:
        """`shape` is that of an image, (H, W) or (H, W, C). Raises InputError for another one."""
        if len(shape) not in (2, 3):
            raise InputError(f"--shift, --flip and --erase want images (N, H, W[, C]); these are {('N', *shape)}")
        self.shape = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
        self.shift, self.flip, self.erase = shift, flip, erase
        if shift >= min(shape[:2]):
            raise InputError(f"--shift {shift} moves images of {shape[0]} x {shape[1]} pixels out of sight")

    def __call__(self, ws: Workspace, raw: Array, keys: Array) -> Array:
        """The changed images (B, features), in the type of the given ones, which may be overwritten."""
        images = raw.reshape(len(raw), *self.shape)
        if self.shift:
            images = self._shifted(ws, images, keys)
        if self.flip:
            images = self._flipped(ws, images, keys)
        if self.erase:
            self._erase(ws, images, keys)
        return images.reshape(raw.shape)

    def _shifted(self, ws: Workspace, images: Array, keys: Array) -> Array:
        """Each image a window, somewhere, of itself with a border of zeros."""
        B, H, W, C = images.shape
        s, ways = self.shift, 2 * self.shift + 1
        wide = ws.empty((B, H + 2 * s, W + 2 * s, C), images.dtype)
        wide.fill(0)
        wide[:, s : s + H, s : s + W] = images
        b, y, x, c = wide.strides
        stride_tricks = ws.xp.lib.stride_tricks
        windows = stride_tricks.as_strided(wide, (B, ways, ways, H, W, C), (b, y, x, y, x, c))
        down, right = (self._whole(ws, keys, purpose, ways) for purpose in (0, 1))
        moved: Array = windows[ws.xp.arange(B), down, right]
        return moved

    def _flipped(self, ws: Workspace, images: Array, keys: Array) -> Array:
        mirrored = (self._random(ws, keys, 2) < 0.5)[:, None, None, None]
        flipped = ws.empty(images.shape, images.dtype)
        ws.xp.copyto(flipped, images)
        ws.xp.copyto(flipped, images[:, :, ::-1], where=mirrored)
        return flipped

    def _erase(self, ws: Workspace, images: Array, keys: Array) -> None:
        """Put rectangles of random size and place to zero; what does not fit into the image is cut off."""
        xp, (_, H, W, _) = ws.xp, images.shape
        area = H * W * (AREA[0] + (AREA[1] - AREA[0]) * self._random(ws, keys, 4))
        root = xp.sqrt(ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** self._random(ws, keys, 5))
        side = xp.sqrt(area)
        height, width = xp.clip(xp.rint(side * root), 1, H), xp.clip(xp.rint(side / root), 1, W)
        top = xp.floor(self._random(ws, keys, 6) * (H - height + 1))
        left = xp.floor(self._random(ws, keys, 7) * (W - width + 1))
        chosen = self._random(ws, keys, 3) < self.erase
        rows, columns = xp.arange(H)[None, :], xp.arange(W)[None, :]
        down = (rows >= top[:, None]) & (rows < (top + height)[:, None]) & chosen[:, None]
        across = (columns >= left[:, None]) & (columns < (left + width)[:, None])
        keep = ~(down[:, :, None] & across[:, None, :])[..., None]
        xp.multiply(images, keep, out=images, casting="unsafe")

    @staticmethod
    def _random(ws: Workspace, keys: Array, purpose: int) -> Array:
        """(B,) float64 in [0, 1)."""
        word = ws.xp.asarray([combine_int(AUGMENT, purpose)], dtype=np.uint32)
        uniform: Array = combine(keys, word) * 2.0**-32
        return uniform

    def _whole(self, ws: Workspace, keys: Array, purpose: int, below: int) -> Array:
        """(B,) whole numbers from 0 on."""
        return (self._random(ws, keys, purpose) * below).astype(np.int64)


def augmentation_of(options: DataOptions, shape: tuple[int, ...]) -> Augmentation | None:
    """What the options ask for; None for nothing. Raises InputError for images that it cannot be done to."""
    if not (options.shift or options.flip or options.erase):
        return None
    return Augmentation(shape, options.shift, options.flip, options.erase)
