"""Random changes of training images, off by default: shift, horizontal flip and erasing.

What happens to an image is a pure function of its key, which is made of seed, epoch and position (order.Positions), so
the ranks do not matter. Images are changed as they are in the file, before they are standardised, in the same pass.
"""

from __future__ import annotations

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.device import Augmentation
from mpi_parallel.options import InputError


def augmentation_of(options: DataOptions, shape: tuple[int, ...]) -> Augmentation | None:
    """What the options ask for of images of this shape, (H, W) or (H, W, C); None for nothing.

    Raises InputError for images that it cannot be done to.
    """
    if not (options.shift or options.flip or options.erase):
        return None
    if len(shape) not in (2, 3):
        raise InputError(f"--shift, --flip and --erase want images (N, H, W[, C]); these are {('N', *shape)}")
    if options.shift >= min(shape[:2]):
        raise InputError(f"--shift {options.shift} moves images of {shape[0]} x {shape[1]} pixels out of sight")
    channels = shape[2] if len(shape) == 3 else 1
    return Augmentation(shape[0], shape[1], channels, options.shift, options.flip, options.erase)
