"""The CUDA kernels, on the CPU and on a GPU."""

import pytest

from mpi_parallel.device.cuda import Cuda
from mpi_parallel.device.cuda_kernels import CudaKernels
from tests.device.emulated import emulated
from tests.device.shim import compiler, shim
from tests.device.where import Place


@pytest.fixture(params=["in order", "backward", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request, monkeypatch) -> CudaKernels:
    """The kernels, with threads and blocks in either order: what they give does not depend on it. And on a GPU."""
    if request.param == "gpu":
        monkeypatch.setattr(Place, "gpu", Cuda(0))
        return Place.gpu.kernels
    compiler()
    shim().library.turn_round(request.param == "backward")
    return CudaKernels(emulated())
