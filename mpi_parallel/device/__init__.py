"""Arrays and where they live: the only room that may import cupy.

`Array` stands for a NumPy or a CuPy array; a `Device` holds the array module that made it.
"""

from __future__ import annotations

from mpi_parallel.device.cuda_choice import NoGPU, explain
from mpi_parallel.device.host import Host
from mpi_parallel.device.interface import Array, Augmentation, Kernels, Pace, Raw
from mpi_parallel.device.places import Device
from mpi_parallel.options import InputError


def open_device(kind: str, node_rank: int, precision: str = "float32", measure: bool = True) -> Device:
    """The device that `--device` asks for; `node_rank` (this rank's number on its node) picks among several GPUs.

    `precision` is that of its products; without `measure` a GPU takes the same kernels for them each time.
    `auto` takes a GPU where CuPy and a GPU are there. Raises InputError when cuda is asked for and is not there.
    """
    if kind == "cpu":
        return Host()
    from mpi_parallel.device import cuda  # here, because only runs that may use a GPU should load cupy

    try:
        return cuda.Cuda(node_rank, precision, measure)
    except NoGPU as error:
        if kind == "auto":
            return Host(error.hint)
        raise InputError(f"--device cuda: {error}") from None


__all__ = ["Array", "Augmentation", "Device", "Host", "Kernels", "Pace", "Raw", "explain", "open_device"]
