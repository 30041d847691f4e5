"""What `import cupy` finds in programs that tests start with this folder on PYTHONPATH: an emulated one.

PRETEND_GPUS, PRETEND_MEMORY (bytes), PRETEND_LAUNCHES (after so many the GPU is lost) and PRETEND_LATE (1: it works
only when it is waited for) tell what it is like.
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

    def do(self, event, work, stream=None):
        def counted():
            Pretended.left -= 1
            if Pretended.left < 0:
                raise CUDARuntimeError("cudaErrorECCUncorrectable: uncorrectable ECC error encountered")
            work()

        super().do(event, counted, stream)


number = {name: int(os.environ.get(f"PRETEND_{name.upper()}", "0")) for name in ("gpus", "memory", "late")}
cupy = Pretended(number["gpus"] or 1, number["memory"] or 8 << 30, bool(number["late"]))
strict.STREAM = cupy
cuda.load = lambda find, major: FakeLt(cupy.do)
sys.modules[__name__] = cupy
