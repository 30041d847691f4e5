"""The CUDA kernels, on the CPU and on a GPU, and a GPU that is emulated."""

import pytest

from mpi_parallel.device.cuda import Cuda
from mpi_parallel.device.cuda_kernels import CudaKernels
from tests.device.emulated import emulated, installed
from tests.device.opened import opened
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


@pytest.fixture(params=["cublasLt", "CuPy"])
def gpu(request, monkeypatch) -> Cuda:
    """A GPU with the library of products, and one without."""
    return opened(monkeypatch, installed(monkeypatch), lt=request.param == "cublasLt")
