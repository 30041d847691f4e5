"""Memory that the ranks of a node share: an MPI window which all of them read and write by plain loads and stores."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike, NDArray

from mpi_parallel.device.host import usable_cores
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.pulse import waiting
from mpi_parallel.options import InputError

OF_MPI = 1 << 16  # bytes that MPI may want for itself beside a window
PAGE = 4096
LINE = 64  # bytes of a cache line
SHARED_MEMORY = Path("/dev/shm")  # where both MPIs put windows on Linux
# In the barrier: looks before a rank gives its core away (some 10 us), and offers of the core before MPI gets a turn.
SPINS, YIELDS = 2000, 200
PATIENCE = 0.01  # seconds of waiting after which a rank sleeps between looks: someone is writing a file, say
NAP, LONGEST_NAP = 0.01, 1e-3  # as a share of what it has waited, which it may wait longer for it, and in seconds


class SharedWindow:
    """A block of memory of all ranks of `node`, cut into arrays by `array`, and the ranks' barrier.

    All ranks make the same calls in the same order. What another rank writes may be read after both have met.
    """

    def __init__(self, node: Communicator, nbytes: int, comm: Communicator | None = None) -> None:
        """Room for arrays of `nbytes` together.

        Raises InputError where the node has not that much shared memory, on all ranks of `comm` where any node has not.
        """
        self.rank, self.size, self._node = node.rank, node.size, node
        nbytes += PAGE + 2 * LINE * node.size
        _check_room(nbytes, comm or node)
        self._window = MPI.Win.Allocate_shared(nbytes if node.rank == 0 else 0, 1, comm=node.comm)
        self._window.Lock_all(MPI.MODE_NOCHECK)  # MPI's word for: from now on plain loads and stores
        memory: Any = self._window.Shared_query(0)[0]
        block = np.frombuffer(memory, np.uint8)
        start = -block.ctypes.data % PAGE  # the same on all ranks, as they map whole pages
        self._free = block[start:]
        self._tickets = self.array((node.size, LINE // 8), np.int64)  # a line each: a rank writes one, others only read
        self._numbers = self.array((node.size, LINE // 8), np.float64)
        self._ticket = 0
        self._meet = node.device.kernels.meet
        # Who spins keeps the core that the one he waits for needs, when there are not enough.
        self._spins = SPINS if node.size <= _cores(node) else 0
        self._touch()

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """The next array of the window, at the start of a cache line."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        part, self._free = self._free[:nbytes], self._free[-(-nbytes // LINE) * LINE :]
        array: NDArray[Any] = part.view(dtype).reshape(shape)
        return array

    @waiting
    def meet(self) -> None:
        """Wait until all ranks are here. Each then sees what the others wrote before."""
        self._ticket += 1
        meet = self._meet
        if meet is None:
            self._window.Sync()  # my writes are in memory before the others hear of it, and theirs before I look
            self._node.meet()
            self._window.Sync()
            return
        if meet(self._tickets, self.rank, self.size, self._ticket, self._spins, YIELDS):
            return
        since, yields = time.monotonic(), YIELDS
        while not meet(self._tickets, self.rank, self.size, self._ticket, 0, yields):
            self._node.progress()  # messages to other nodes, for whose answers the late rank may wait
            if (waited := time.monotonic() - since) > PATIENCE:
                yields = 1
                time.sleep(min(NAP * waited, LONGEST_NAP))

    def total(self, value: float) -> float:
        """The sum of the ranks' numbers, in their order. Between two calls all ranks meet once more."""
        self._numbers[self.rank, 0] = value
        self.meet()
        return float(self._numbers[:, 0].sum())

    def free(self) -> None:
        """Give the memory back, which no array may use any more; all ranks together."""
        self.meet()
        del self._free, self._tickets, self._numbers
        self._window.Unlock_all()
        self._window.Free()

    def _touch(self) -> None:
        """Nobody goes on before the lines of the barrier are zeros on all ranks."""
        self._tickets[self.rank] = 0
        self._numbers[self.rank] = 0
        self._window.Sync()
        self._node.meet()
        self._window.Sync()


def aligned(nbytes: int) -> int:
    """What an array of so many bytes takes of a window."""
    return -(-nbytes // LINE) * LINE


def _cores(node: Communicator) -> int:
    """How many cores the ranks of the node may use together, bound or not."""
    sets = node.gather_text(" ".join(map(str, sorted(usable_cores()))))
    return len({core for cores in sets for core in cores.split()})


def _check_room(nbytes: int, comm: Communicator) -> None:
    """Containers often have 64 MB of shared memory, and who writes beyond dies of a bus error without a word."""
    complaint = ""
    if nbytes > (left := _room() - OF_MPI):
        complaint = (
            f"a shared window of {nbytes:,} bytes is more than the {max(0, left):,} left for it in {SHARED_MEMORY} "
            f"on {MPI.Get_processor_name()}: enlarge it (docker run --shm-size, ulimit -f), or choose --merge flat"
        )
    if complaints := [text for text in comm.gather_text(complaint) if text]:
        raise InputError(complaints[0])


def _room() -> int:
    """The bytes that this process may still put into shared memory, which is made of files."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = limit if limit != resource.RLIM_INFINITY else 2**62
    if SHARED_MEMORY.is_dir():
        found = os.statvfs(SHARED_MEMORY)
        room = min(room, found.f_bavail * found.f_frsize)
    return room
