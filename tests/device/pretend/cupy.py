"""What `import cupy` finds in programs that tests start with this folder on PYTHONPATH: an emulated one.

PRETEND_GPUS, PRETEND_MEMORY (bytes), PRETEND_LAUNCHES (after so many the GPU is lost) and PRETEND_LATE (1: it works
only when it is waited for) tell what it is like; with
PRETEND_RANK only on that rank, and one like any other elsewhere.
"""

import os
import sys

from mpi_parallel.device import cuda, tuning
from tests.device import strict
from tests.device.emulated import Emulated
from tests.device.fake_lt import FakeLt
from tests.device.streams import CUDARuntimeError

rank = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0"))
mine = os.environ.get("PRETEND_RANK", rank) == rank
number = {name: os.environ.get(f"PRETEND_{name.upper()}") for name in ("gpus", "memory", "late", "launches")}
number = {name: int(value) for name, value in number.items() if value and mine}


class Pretended(Emulated):
    """One that may be lost."""

    left = number.get("launches") or 10**9

    def do(self, event, work, stream=None):
        def counted():
            Pretended.left -= 1
            if Pretended.left < 0:
                raise CUDARuntimeError("cudaErrorECCUncorrectable: uncorrectable ECC error encountered")
            work()

        super().do(event, counted, stream)


cupy = Pretended(number.get("gpus", 1), number.get("memory", 8 << 30), bool(number.get("late")))
strict.STREAM = cupy
tuning.cache_folder = lambda: None  # a program under test leaves nothing behind
cuda.load = lambda find, major: FakeLt(cupy.do)
sys.modules[__name__] = cupy
