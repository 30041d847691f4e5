"""The device of this package on an emulated GPU."""

from __future__ import annotations

from mpi_parallel.device import cuda
from mpi_parallel.device.cuda import Cuda
from tests.device.emulated import Emulated
from tests.device.fake_lt import FakeLt
from tests.device.shim import compiler


def opened(
    monkeypatch, cupy: Emulated, lt: bool = True, refused: tuple[int, ...] = (), times: tuple[float, ...] = (), **how
) -> Cuda:
    """`times` are what captured work is found to take; where there are none, nothing is tried."""
    compiler()

    def load(find, major: int) -> FakeLt:
        if not lt:
            raise OSError("no such library")
        return FakeLt(cupy.do, refused)

    monkeypatch.setattr(cuda, "load", load)
    device = Cuda(0, **how)
    device.measures, device.time = bool(times), lambda replays: list(times)
    return device
