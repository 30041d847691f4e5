"""What `import cupy` finds in programs that tests start with this folder on PYTHONPATH: an emulated one.

PRETEND_GPUS, PRETEND_MEMORY (bytes) and PRETEND_LAUNCHES (after so many the GPU is lost) tell what it is like.
"""

import os
import sys

from mpi_parallel.device import cuda
from tests.device import strict
from tests.device.emulated import CUDARuntimeError, Emulated
from tests.device.fake_lt import FakeLt


class Pretended(Emulated):
    """One that may be lost."""

    left = int(os.environ.get("PRETEND_LAUNCHES", 10**9))

    def do(self, event, work):
        Pretended.left -= 1
        if Pretended.left < 0:
            raise CUDARuntimeError("cudaErrorECCUncorrectable: uncorrectable ECC error encountered")
        super().do(event, work)


cupy = Pretended(int(os.environ.get("PRETEND_GPUS", "1")), int(os.environ.get("PRETEND_MEMORY", 8 << 30)))
strict.STREAM = cupy
cuda.load = lambda find, major: FakeLt(cupy.do)
sys.modules[__name__] = cupy
