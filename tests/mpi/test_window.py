"""Shared memory of a node: what one rank writes all read, and the barrier orders it."""

import time
from pathlib import Path

import numpy as np
import pytest

from mpi_parallel.mpi import window as module
from mpi_parallel.mpi.window import LINE, SharedWindow, aligned
from tests.assembly import world

ALL = pytest.mark.parallel([1, 2, 3, 4])
WITHOUT_KERNELS = pytest.mark.parametrize("kernels", [True, False])


def make(nbytes: int, kernels: bool = True) -> SharedWindow:
    window = SharedWindow(world(), nbytes)
    if not kernels:
        window._meet = None
    return window


@ALL
def test_all_ranks_see_the_same_arrays_at_the_start_of_cache_lines():
    comm, window = world(), make(4 * LINE)
    one, two = window.array((5,), np.float32), window.array((3, 2), np.int64)
    for array in (one, two):
        assert array.ctypes.data % LINE == 0
    if comm.rank == comm.size - 1:
        one[:], two[:] = 1.5, [[1, 2], [3, 4], [5, 6]]
    window.meet()
    assert one.tolist() == [1.5] * 5
    assert two.tolist() == [[1, 2], [3, 4], [5, 6]]
    window.meet()
    del one, two
    window.free()


@ALL
@WITHOUT_KERNELS
def test_nobody_passes_the_barrier_before_all_are_there(kernels):
    """Each rank writes, meets, reads all others, meets, and writes again: no one is ever too early or too late."""
    comm, window = world(), make(64 * LINE, kernels)
    written = window.array((comm.size, 16), np.int64)
    for turn in range(2000 if kernels else 200):
        written[comm.rank] = turn
        window.meet()
        assert (written == turn).all()
        window.meet()
    del written
    window.free()


@ALL
@WITHOUT_KERNELS
def test_who_comes_late_is_waited_for(kernels, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.001)
    comm, window = world(), make(2 * LINE, kernels)
    last = window.array((1,), np.int64)
    for late in range(comm.size):
        if comm.rank == late:
            time.sleep(0.02)
            last[0] = late
        window.meet()
        assert last[0] == late
        window.meet()
    del last
    window.free()


@pytest.mark.parallel([2, 3])
def test_who_waits_long_leaves_the_core_to_others():
    comm, window = world(), make(LINE)
    comm.meet()
    before = time.process_time()
    if comm.rank == 0:
        time.sleep(0.5)
    window.meet()
    assert time.process_time() - before < 0.1
    window.free()


@ALL
def test_totals_are_those_of_the_ranks_in_order_and_the_same_bits_on_all():
    comm, window = world(), make(LINE)
    for turn in range(20):
        mine = np.random.default_rng([comm.rank, turn]).normal()
        total = window.total(mine)
        window.meet()
        numbers = comm.gather(np.array([mine, total]))
        assert total == pytest.approx(numbers[:, 0].sum(), rel=1e-12)
        assert (numbers[:, 1] == total).all()
    window.free()


@ALL
def test_windows_come_and_go():
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(10):
        window = make(1 << 20)
        array = window.array((1 << 18,), np.float32)
        array[world().rank] = 1
        del array
        window.free()
    assert len(set(Path("/proc/self/fd").iterdir()) - before) < 5


def test_arrays_take_whole_lines():
    assert [aligned(n) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]
