"""NVTX ranges: the phases of a run as Nsight Systems shows them beside the kernels of the GPU."""

from __future__ import annotations

from typing import Any

from mpi_parallel.device.clock import Listener
from mpi_parallel.device.places import Device


class Ranges:
    """One range at a time, named as the trace names it: what a rank's host does while its GPU computes."""

    def __init__(self, nvtx: Any) -> None:
        """`nvtx` is cupy.cuda.nvtx."""
        self._nvtx, self._open = nvtx, False

    def change(self, now: float, step: int, name: str, micro: int | None) -> None:
        if self._open:
            self._nvtx.RangePop()
        self._nvtx.RangePush(name if micro is None else f"{name} {micro}")
        self._open = True

    def beside(self, step: int, lane: str, name: str, begun: float, ended: float) -> None:
        """Over already; a profiler sees messages and threads by itself."""


def ranges_on(device: Device) -> tuple[Listener, ...]:
    """A listener that marks ranges, where the device is a GPU and its CuPy has NVTX."""
    if device.kind != "cuda":
        return ()
    from cupy.cuda import nvtx  # here, because only a GPU needs it

    return (Ranges(nvtx),) if getattr(nvtx, "available", True) else ()
