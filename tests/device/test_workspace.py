"""The arena: the same addresses for the same step, no allocation, no overlap."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device import Host
from mpi_parallel.device.host import ALIGNMENT
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.optimizers import RULES
from tests.once import once

pytestmark = once

DTYPES = st.sampled_from([np.float32, np.uint8, bool, np.int64, np.float64])
REQUESTS = st.lists(st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=3).map(tuple), DTYPES), max_size=12)


def take(ws: Workspace, requests: Sequence[tuple[tuple[int, ...], type]]) -> list[np.ndarray]:
    """One step that asks for these arrays."""
    ws.reset()
    return [ws.empty(*request) for request in requests]


def addresses(arrays: Sequence[np.ndarray]) -> list[int]:
    return [array.ctypes.data for array in arrays if array.size]


@given(st.lists(REQUESTS, min_size=1, max_size=4))
def test_live_arrays_never_overlap(steps):
    """Whatever the steps before have asked for; each array is filled, then all are looked at."""
    ws = Workspace(Host())
    for requests in [step for step in steps for _ in range(2)]:
        arrays = take(ws, requests)
        for number, (array, (shape, dtype)) in enumerate(zip(arrays, requests, strict=True)):
            assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
            assert array.flags.c_contiguous
            array[...] = number % 2 if dtype is bool else number + 1
        for number, (array, (_, dtype)) in enumerate(zip(arrays, requests, strict=True)):
            assert (array == (number % 2 if dtype is bool else number + 1)).all()


@given(REQUESTS)
def test_a_step_that_repeats_takes_the_same_addresses_aligned(requests):
    ws = Workspace(Host())
    take(ws, requests)  # finds the arena too small
    second, third = addresses(take(ws, requests)), addresses(take(ws, requests))
    assert second == third
    assert all(address % ALIGNMENT == 0 for address in second)
    assert len(set(second)) == len(second)


@given(REQUESTS, REQUESTS)
def test_steps_that_alternate_keep_their_addresses_once_the_arena_is_large_enough(one, other):
    ws = Workspace(Host())
    for requests in (one, other):
        take(ws, requests)
    ws.reset()
    size = ws.nbytes
    kept = [addresses(take(ws, requests)) for requests in (one, other)]
    assert [addresses(take(ws, requests)) for requests in (one, other)] == kept
    assert ws.nbytes == size


def test_the_arena_grows_to_the_largest_step_and_stays():
    ws = Workspace(Host())
    sizes = []
    for elements in (10, 1000, 10, 2000):
        take(ws, [((elements,), np.float32)] * 3)
        ws.reset()
        sizes.append(ws.nbytes)
    assert sizes[0] >= 3 * 10 * 4
    assert sizes[1] == sizes[2] >= 3 * 1000 * 4
    assert 3 * 2000 * 4 <= sizes[3] < 3 * 2000 * 4 + 8 * ALIGNMENT


def test_arrays_of_the_step_in_which_it_grows_stay_good_to_its_end():
    ws = Workspace(Host())
    take(ws, [((10,), np.float32)])
    ws.reset()
    small, large = take(ws, [((10,), np.float32), ((1000,), np.float32)])
    small[:], large[:] = 1, 2
    more = ws.empty((1000,))
    more[:] = 3
    assert (small == 1).all()
    assert (large == 2).all()


def test_the_same_place_serves_other_shapes_and_types():
    ws = Workspace(Host())
    take(ws, [((4, 8), np.float32)])
    (matrix,) = take(ws, [((4, 8), np.float32)])
    (flat,) = take(ws, [((32,), np.uint32)])
    assert flat.ctypes.data == matrix.ctypes.data
    assert (matrix.shape, flat.shape, flat.dtype) == ((4, 8), (32,), np.uint32)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("rows", "widths"), [(8192, (8, 8, 8, 10)), (8, (512, 512, 10))], ids=["rows", "weights"])
def test_a_training_step_that_repeats_allocates_nothing(rule, rows, widths):
    """Of arrays, that is: a matrix here has 256 kB or more; what NumPy casts types in has 128 kB at most."""
    model = MLP(Host(), widths)
    optimizer = RULES[rule](model.store, 0.01)
    x_BI, t_B = np.ones((rows, widths[0]), np.float32), np.zeros(rows, np.int32)

    def step() -> None:
        model.workspace.reset()
        model.store.zero_grad()
        z_BK, backward = model.training.forward(x_BI)
        backward(model.loss_gradient(z_BK, t_B, model.store.tail), lambda parameters: None)
        optimizer.step(slice(0, model.store.size), 1e-3)

    for _ in range(3):
        step()
    tracemalloc.start()
    try:
        step()  # what tracemalloc itself wants
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 160 << 10
