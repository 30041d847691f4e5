"""kernels/cuda.cu against NumPy's expressions, run on the CPU by the shim."""

import numpy as np
import pytest

from mpi_parallel.device import cuda_kernels
from mpi_parallel.device.cuda_kernels import CudaKernels
from mpi_parallel.device.interface import Augmentation, Raw
from tests.device.emulated import emulated
from tests.device.operands import PLAIN_KERNELS, TYPES, empty, normal, read, to_bits, to_numbers
from tests.device.shim import compiler
from tests.device.where import on, values
from tests.once import once

pytestmark = once

SHAPES = [(0, 5), (1, 1), (20, 33), (35, 257)]
ROWS = [*SHAPES, (20, 36), (9, 1028)]  # also those whose numbers are taken four at a time


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_gather(kernels, dtype, kind):
    for rows, width in ROWS:
        for scalar in (True, False):
            gather(kernels, rows, width, dtype, kind, scalar)


def gather(kernels, rows, width, dtype, kind, scalar):
    random = np.random.default_rng(1)
    images, labels = random.integers(0, 200, (50, width)).astype(dtype), random.integers(0, 9, 50).astype(np.int32)
    index = random.integers(0, 50, rows)
    mean, inverse = normal(1 if scalar else width), normal(1 if scalar else width, seed=1)
    expected = np.empty((rows, width), np.float32)
    theirs = Raw(images.astype(np.float32), labels, mean, inverse)
    PLAIN_KERNELS.gather(theirs, index, expected, np.empty(rows, np.int32))
    x, t = empty((rows, width), kind), on(np.zeros(rows, np.int32))
    kernels.gather(Raw(*map(on, (images, labels, mean, inverse))), on(index), x, t)
    np.testing.assert_array_equal(values(x), to_bits(expected, kind))
    np.testing.assert_array_equal(values(t), labels[index])


IMAGES = [(1, 1, 1), (7, 5, 1), (5, 8, 3), (19, 17, 1)]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_rows_that_are_changed_by_their_keys(kernels, dtype, kind):
    for rows, height, width, channels in [(0, 3, 3, 1), *((20, *shape) for shape in IMAGES)]:
        for how in ((0, False, 1.0), (min(2, height - 1), True, 0.5)):
            augmented(kernels, rows, Augmentation(height, width, channels, *how), dtype, kind, width % 2 == 1)


def augmented(kernels, rows, how, dtype, kind, scalar):
    random, features = np.random.default_rng(2), how.height * how.width * how.channels
    images, labels = random.integers(0, 200, (50, features)).astype(dtype), random.integers(0, 9, 50).astype(np.int32)
    index, keys = random.integers(0, 50, rows), random.integers(0, 2**32, rows, np.uint32)
    mean, inverse = normal(1 if scalar else features), normal(1 if scalar else features, seed=1)
    expected, theirs = np.empty((rows, features), np.float32), np.empty(rows, np.int32)
    wide = Raw(images.astype(np.float32), labels, mean, inverse)
    PLAIN_KERNELS.gather_augmented(wide, index, keys, how, expected, theirs)
    x, t = empty((rows, features), kind), on(np.zeros(rows, np.int32))
    kernels.gather_augmented(Raw(*map(on, (images, labels, mean, inverse))), on(index), on(keys), how, x, t)
    np.testing.assert_array_equal(values(x), to_bits(expected, kind))
    np.testing.assert_array_equal(values(t), theirs)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize("relu", [True, False])
def test_bias_relu_and_its_gradient(kernels, rows, width, kind, relu):
    y, b, dy = to_bits(normal(rows, width), kind), normal(width), to_bits(normal(rows, width, seed=2), kind)
    expected, ours = to_numbers(y, kind), on(y)
    PLAIN_KERNELS.bias(expected, to_numbers(to_bits(b, kind), kind), relu)
    kernels.bias(ours, on(to_bits(b, kind)), relu)
    np.testing.assert_array_equal(values(ours), to_bits(expected, kind))
    gradient, ours_too = to_numbers(dy, kind), on(dy)
    PLAIN_KERNELS.relu_gradient(gradient, to_numbers(values(ours), kind))
    kernels.relu_gradient(ours_too, ours)
    np.testing.assert_array_equal(read(ours_too, kind), gradient)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize("add", [True, False])
def test_column_sums(kernels, rows, width, kind, add):
    a, sums = to_bits(normal(rows, width), kind), normal(width)
    ours = on(sums)
    kernels.column_sums(on(a), ours, add)
    expected = to_numbers(a, kind).astype(float).sum(axis=0) + (sums if add else 0)
    np.testing.assert_allclose(read(ours), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropout_has_the_masks_of_the_host(kernels, rows, width, kind, rate):
    x, keys = to_bits(normal(rows, width), kind), np.random.default_rng(3).integers(0, 2**32, rows, np.uint32)
    expected, ours = np.empty((rows, width), np.float32), empty((rows, width), kind)
    PLAIN_KERNELS.dropout(to_numbers(x, kind), keys, 12345, rate, expected, 11)
    kernels.dropout(on(x), on(keys), 12345, rate, ours, 11)
    np.testing.assert_array_equal(read(ours, kind) == 0, expected == 0)
    np.testing.assert_allclose(read(ours, kind), expected, rtol=1e-2 if kind == "bf16" else 1e-3)


@pytest.mark.parametrize(("rows", "classes"), [(0, 10), (1, 1), (70, 10), (65, 32), (0, 33), (9, 33), (3, 1000)])
def test_cross_entropy(kernels, rows, classes):
    z = normal(rows, classes) * np.float32(3)
    t = np.random.default_rng(4).integers(0, classes, rows).astype(np.int32)
    expected, sums = z.copy(), np.ones(5, np.float32)
    PLAIN_KERNELS.cross_entropy(expected, t, sums)
    ours, ours_sums = on(z), on(np.ones(5, np.float32))
    kernels.cross_entropy(ours, on(t), ours_sums)
    np.testing.assert_allclose(read(ours), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(read(ours_sums), sums, rtol=1e-4)
    assert read(ours_sums)[1:].tolist() == sums[1:].tolist()


def test_cross_entropy_of_a_hundred_thousand_classes(kernels):
    z, t = normal(3, 100_000), np.array([0, 99_999, 12_345], np.int32)
    expected, sums = z.copy(), np.zeros(2, np.float32)
    PLAIN_KERNELS.cross_entropy(expected, t, sums)
    ours, ours_sums = on(z), on(np.zeros(2, np.float32))
    kernels.cross_entropy(ours, on(t), ours_sums)
    np.testing.assert_allclose(read(ours), expected, rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(read(ours_sums), sums, rtol=1e-5)


@pytest.mark.parametrize("classes", [3, 70])
def test_of_equal_logits_the_first_is_the_guess_and_what_is_not_finite_shows_in_the_loss(kernels, classes):
    z = np.zeros((3, classes), np.float32)
    z[0, 1:3], z[1, 0], z[2, 1] = 2, np.nan, np.inf
    for row, target, hit in ((0, 1, 1), (1, 0, None), (2, 0, None)):
        sums = on(np.zeros(2, np.float32))
        kernels.cross_entropy(on(z[row : row + 1]), on(np.array([target], np.int32)), sums)
        assert (read(sums)[1] == 1) if hit else not np.isfinite(read(sums)[0])


SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    np.nan,
    np.inf,
    -np.inf,
    65504,
    65519.9,
    65520,
    1e-8,
    2.0**-24,
    2.0**-25,
    6e-8,
    2.0**-14,
]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("n", [0, 1, 700])
def test_narrow_and_widen(kernels, kind, n):
    a = (normal(n) * np.float32(10) ** np.random.default_rng(5).integers(-9, 9, n)).astype(np.float32)
    a = np.concatenate([a, np.array(SPECIAL, np.float32), -np.array(SPECIAL, np.float32)])
    narrow, wide = empty(a.shape, kind), empty(a.shape, "f32")
    kernels.narrow(on(a), narrow, "")
    expected = to_numbers(to_bits(a, kind), kind)
    np.testing.assert_array_equal(read(narrow, kind), expected)
    np.testing.assert_array_equal(np.signbit(read(narrow, kind)), np.signbit(expected))
    kernels.widen(narrow, wide)
    np.testing.assert_array_equal(read(wide), expected)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_every_nan_stays_one(kernels, kind):
    """Also those whose upper half alone is that of an infinite number."""
    a = (np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFC00000], np.uint32)).view(np.float32)
    narrow = empty(a.shape, kind)
    kernels.narrow(on(a), narrow, "")
    assert np.isnan(read(narrow, kind)).all()


def test_every_half_number_comes_back(kernels):
    bits = np.arange(2**16, dtype=np.uint16)
    wide, narrow = empty(bits.shape, "f32"), empty(bits.shape, "f16")
    kernels.widen(on(bits.view(np.float16)), wide)
    np.testing.assert_array_equal(read(wide), bits.view(np.float16).astype(np.float32))
    kernels.narrow(wide, narrow, "float16")
    np.testing.assert_array_equal(read(narrow), bits.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("n", [0, 1, 31, 3000])
@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_check_and_squares(kernels, n, bad):
    a, flag, out = normal(n), on(np.zeros(1, np.float32)), on(np.array([7.0]))
    kernels.squares(on(a), out)
    np.testing.assert_allclose(values(out)[0], np.square(a.astype(float)).sum(), rtol=1e-12)
    if bad is not None and n:
        a[n // 2] = bad
    kernels.check(on(a), flag)
    assert np.isnan(read(flag)[0]) == (bad is not None and n > 0)
    tail = on(np.array([1, 2, 3, 4, 5, 0], np.float32))
    kernels.finish(on(a), tail[5:], tail[2:3], 7)
    np.testing.assert_array_equal(read(tail), [1, 2, 10, 4, 5, read(flag)[0]])


def test_deal_hands_out_one_batch_after_the_other(kernels):
    index_N, keys_N = np.arange(100, 700), np.arange(600, dtype=np.uint32)
    cursor = on(np.array([5]))
    for first, rows in ((5, 300), (305, 0), (305, 295)):
        index, keys = on(np.zeros(rows, np.int64)), on(np.zeros(rows, np.uint32))
        tail = on(np.ones(6, np.float32))
        kernels.deal(on(index_N), on(keys_N), cursor, index, keys, tail)
        assert not values(tail).any()
        np.testing.assert_array_equal(values(index), index_N[first : first + rows])
        np.testing.assert_array_equal(values(keys), keys_N[first : first + rows])
        assert int(cursor[0]) == first + rows


@pytest.mark.parametrize("blocks", [1, 2])
def test_threads_that_have_several_elements(kernels, monkeypatch, blocks):
    """As they do where there are more elements than threads of the largest grid; some have one less than others."""
    monkeypatch.setattr(cuda_kernels, "BLOCKS", blocks)
    for kind in ("f16", "bf16"):
        test_narrow_and_widen(kernels, kind, 3000)
        test_bias_relu_and_its_gradient(kernels, 35, 257, kind, True)
    for bad in (None, np.nan):
        test_check_and_squares(kernels, 3000, bad)


def test_a_launch_allocates_nothing_once_it_was_made():
    compiler()
    kernels = CudaKernels(emulated())
    z, t, sums = on(normal(40, 10)), on(np.zeros(40, np.int32)), on(np.zeros(2, np.float32))
    for _ in range(2):
        kernels.xp.events.clear()
        kernels.cross_entropy(z, t, sums)
    assert kernels.xp.events == [("launch", "cross_entropy_of_few")]
