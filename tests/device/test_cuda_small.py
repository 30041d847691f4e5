"""kernels/small.cu, which takes rows through a whole network, against NumPy's expressions: on the CPU, and on a GPU."""

from itertools import pairwise

import numpy as np
import pytest

from mpi_parallel.device.cuda_small import LARGEST, MOST_ROWS, STATIC, _shared
from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.interface import SmallNetwork
from mpi_parallel.nn.store import BAD, TAIL
from tests.device.where import on, values
from tests.once import once

pytestmark = once

# Of every odd kind: one layer more or less than the default, tiles that end within, one row, one class and one unit.
NETWORKS = [
    (784, 128, 64, 10),
    (5, 3, 2),
    (33, 40, 32),
    (129, 1, 7, 1),
    (40, 256, 31, 33, 17, 5),
    (256, 65, 3, 4, 5, 6, 2),
]


def network(widths, dropout=0.0, apart=1):
    """As a store has it, the last layer first and parameters `apart` numbers apart, and how many numbers that takes."""
    starts, end = [], 0
    for ins, outs in reversed(list(pairwise(widths))):
        of_b = end + -(-ins * outs // apart) * apart
        starts.append((end, of_b))
        end = of_b + -(-outs // apart) * apart
    return SmallNetwork(widths, tuple(reversed(starts)), dropout), end


def arguments(widths, rows, dropout=0.0, apart=1):
    """What `small_pass` is given, and garbage where it writes."""
    random = np.random.default_rng([rows, *widths])
    told, size = network(widths, dropout, apart)
    weights = (random.normal(size=size) / np.sqrt(max(widths[1:]))).astype(np.float32)
    x = random.normal(size=(rows, widths[0])).astype(np.float32)
    keys = random.integers(2**32, size=rows, dtype=np.uint32)
    t = random.integers(widths[-1], size=rows, dtype=np.int32)
    return told, [x, keys, t, weights, np.full(size + TAIL, 77, np.float32)]


def run(kernels, told, arrays):
    """The gradients and tail that the kernels leave; the weights and rows stay as they are."""
    held = [on(array) for array in arrays]
    room = on(np.full(kernels.small_numbers(told, len(arrays[0])), np.nan, np.float32))
    kernels.small_pass(told, *held, room)
    for array, given in zip(held[:4], arrays, strict=False):
        np.testing.assert_array_equal(values(array), given)
    return values(held[4])


def expected_of(told, arrays):
    merged = arrays[4].copy()
    with np.errstate(all="ignore"):
        Expressions(np).small_pass(told, *arrays[:4], merged, merged[:0])
    return merged


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("rows", [1, 2, 37, 130])
@pytest.mark.parametrize("widths", NETWORKS, ids=str)
def test_gradients_and_tail_are_those_of_the_layers(kernels, widths, rows, dropout):
    told, arrays = arguments(widths, rows, dropout, apart=16 if rows == 37 else 1)
    merged, expected = run(kernels, told, arrays), expected_of(told, arrays)
    np.testing.assert_allclose(merged, expected, rtol=2e-5, atol=2e-5 * np.abs(expected[:-TAIL]).max())
    np.testing.assert_array_equal(merged[-TAIL + 1 :], expected[-TAIL + 1 :])


@pytest.mark.parametrize("widths", [(5, 3, 2), (129, 1, 7, 1), (500, 70, 3)], ids=str)
def test_of_many_rows_the_tiles_are_large_and_blocks_share_them(kernels, widths):
    told, arrays = arguments(widths, 513, dropout=0.2)
    plan = kernels._small._plan(widths, 513)
    assert (plan.side, plan.together) == (64, 4)
    assert plan.shares > 1
    assert (plan.slices > 1) == (widths[0] > 5)
    assert (plan.share == plan.length == 2 * 32) == (widths[0] == 500)  # more than once what is at hand
    for _ in range(2):  # the tickets are wound up
        merged, expected = run(kernels, told, arrays), expected_of(told, arrays)
        np.testing.assert_allclose(merged, expected, rtol=2e-5, atol=2e-5 * np.abs(expected[:-TAIL]).max())
        np.testing.assert_array_equal(merged[-TAIL + 1 :], expected[-TAIL + 1 :])


def test_the_same_launch_gives_the_same_bits(kernels):
    told, arrays = arguments(NETWORKS[0], 130)
    np.testing.assert_array_equal(run(kernels, told, arrays), run(kernels, told, arrays))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["image", "weight of the first layer", "weight of the last"])
def test_what_is_not_finite_is_flagged(kernels, bad, what):
    told, arrays = arguments((33, 9, 4), 5)
    x, weights = arrays[0], arrays[3]
    if what == "image":
        x[3, 7] = bad
    else:
        weights[0 if what.endswith("last") else told.starts[0][0]] = bad
    merged = run(kernels, told, arrays)
    assert not np.isfinite(merged[:-TAIL]).all()
    assert np.isnan(merged[-TAIL:][BAD])


def test_which_networks_fit(kernels):
    def numbers(widths, rows=256):
        return kernels.small_numbers(network(widths)[0], rows)

    assert numbers((784, 128, 64, 10)) == 256 * (7 * 128 + 128 + 64 + 128 + 64 + 10 + 2)
    room = kernels._small._shared_bytes  # of which an H200 has enough for this, and older chips may not
    assert bool(numbers((784, 256, 128, 10))) == (room >= 150_000)
    assert not numbers((784, 128, 64, 10), 0)
    assert not numbers((784, 128, 64, 10), MOST_ROWS + 1)
    assert not numbers((784, 10))  # nothing is hidden
    assert not numbers((784, 257, 10))
    assert not numbers((784, 128, 33))
    assert not numbers((784, 250, 250, 10))  # more than a block's shared memory
    assert not numbers((9, 8, 8, 8, 8, 8, 8, 2))
    assert not numbers((LARGEST // 1024, 8, 2), 1025)
    assert not numbers((150_528, 256, 128, 10), 512)  # more memory than it is worth
    assert numbers((784, 128, 64, 10), 4096) == 4096 * (2 * 128 + 128 + 64 + 128 + 64 + 10 + 2) + 29 * 8 * 64 * 65
    assert _shared((784, 128, 64, 10), 2) < (48 << 10) - STATIC


def test_a_launch_asks_for_shared_memory_where_what_it_has_ends(kernels):
    """784-144-62-10 wants about what is left of 48 KiB beside the kernel's own."""
    told, arrays = arguments((784, 144, 62, 10), 3)
    assert _shared(told.widths, 2) == 47104
    np.testing.assert_allclose(run(kernels, told, arrays)[:-TAIL], expected_of(told, arrays)[:-TAIL], atol=1e-4)
