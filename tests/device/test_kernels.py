"""The compiled kernels against NumPy's expressions, at odd shapes, and the same bits for any number of threads."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device import Augmentation, Pace, Raw
from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.host import best_kernels
from mpi_parallel.device.openmp import MODULE, OpenMP
from tests.once import once

pytestmark = once

COMPILED, PLAIN = OpenMP(), Expressions(np)
ROWS, WIDTH, SEED = st.integers(0, 40), st.integers(1, 70), st.integers(0, 2**32 - 1)
LARGE = (300, 700)  # enough elements for several threads


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def both(name: str, *arguments, out: int):
    """The argument number `out` after the kernel of each kind, each on copies."""
    results = []
    for kernels in (COMPILED, PLAIN):
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        getattr(kernels, name)(*copies)
        results.append(copies[out])
    return results


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.int16])
@pytest.mark.parametrize("scalar", [True, False])
@given(ROWS, WIDTH, SEED)
def test_gather_is_the_expression_in_every_type(dtype, scalar, rows, width, seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 200, (50, width)).astype(dtype)
    index = random.integers(0, 50, rows)
    mean, inverse = (normal(1 if scalar else width, seed=seed + k) for k in (1, 2))
    raw, t = Raw(images, np.arange(50, dtype=np.int32), mean, inverse), np.empty(rows, np.int32)
    ours, theirs = both("gather", raw, index, np.empty((rows, width), np.float32), t, out=2)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5)
    if dtype in (np.uint8, np.uint16, np.float32):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.int16])
@pytest.mark.parametrize("scalar", [True, False])
@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 8), SEED)
def test_augmentation_is_the_expression_bit_for_bit(dtype, scalar, rows, height, width, channels, shift, seed):
    random, features = np.random.default_rng(seed), height * width * channels
    images, labels = random.integers(0, 200, (50, features)).astype(dtype), np.arange(50, dtype=np.int32)
    index, keys = random.integers(0, 50, rows), random.integers(0, 2**32, rows, np.uint32)
    mean, inverse = (normal(1 if scalar else features, seed=seed + k) for k in (1, 2))
    how = Augmentation(height, width, channels, min(shift, height - 1, width - 1), bool(seed % 2), seed % 3 / 2)
    x, t = np.empty((rows, features), np.float32), np.empty(rows, np.int32)
    for out, made in ((4, x), (5, t)):
        ours, theirs = both("gather_augmented", Raw(images, labels, mean, inverse), index, keys, how, x, t, out=out)
        np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))
        assert ours.shape == made.shape


def test_augmentation_of_images_that_are_not_finite_shows_them_where_they_are_seen():
    """What is erased is 0, also where infinity was, and no -0."""
    images = np.full((300, 12), np.inf, np.float32)
    images[::2] = -1
    index, keys = np.arange(300), np.random.default_rng(0).integers(0, 2**32, 300, np.uint32)
    t, nothing, how = np.zeros(300, np.int32), np.zeros(1, np.float32), Augmentation(4, 3, 1, 1, True, 0.9)
    x = np.empty((300, 12), np.float32)
    ours, theirs = both("gather_augmented", Raw(images, t, nothing, nothing + 1), index, keys, how, x, t, out=4)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))
    assert set(np.unique(ours.view(np.uint32))) == {0, *np.array([np.inf, -1], np.float32).view(np.uint32)}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int16])
@pytest.mark.parametrize("width", [63, 64, 784, 5000])  # around the lines of the cache, and beyond what is fetched
def test_rows_come_with_their_labels(dtype, width):
    random = np.random.default_rng(width)
    images, labels = random.integers(0, 200, (50, width)).astype(dtype), random.integers(0, 9, 50).astype(np.int32)
    index, mean, inverse = random.integers(0, 50, 40), normal(1), normal(1, seed=1)
    x, t = np.empty((40, width), np.float32), np.empty(40, np.int32)
    COMPILED.gather(Raw(images, labels, mean, inverse), index, x, t)
    np.testing.assert_allclose(x, (images[index] - mean) * inverse, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(t, labels[index])


@given(ROWS, WIDTH, SEED, st.booleans())
def test_bias_relu_and_its_gradient(rows, width, seed, relu):
    y, b = normal(rows, width, seed=seed), normal(width, seed=seed + 1)
    ours, theirs = both("bias", y, b, relu, out=0)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(*both("relu_gradient", normal(rows, width, seed=seed + 2), theirs, out=0))


@given(ROWS, WIDTH, SEED, st.booleans())
def test_column_sums(rows, width, seed, add):
    a, sums = normal(rows, width, seed=seed), normal(width, seed=seed + 1)
    np.testing.assert_allclose(*both("column_sums", a, sums, add, out=1), rtol=1e-4, atol=1e-4)


@given(ROWS, WIDTH, WIDTH, SEED)
def test_a_product_is_added_also_that_of_some_columns(rows, inputs, outputs, seed):
    a, b, c = normal(rows, inputs + 3, seed=seed), normal(rows, outputs, seed=seed + 1), normal(inputs, outputs)
    expected = c + a[:, 2:-1].T.astype(float) @ b
    for kernels in (COMPILED, PLAIN):
        added = c.copy()
        kernels.weight_gradient(a[:, 2:-1], b, added, None, True)
        np.testing.assert_allclose(added, expected, rtol=1e-4, atol=1e-4)


@given(ROWS, WIDTH, SEED, st.sampled_from([0.0, 0.3, 0.999]), st.sampled_from([0, 5, 40]))
def test_dropout_of_a_slice_draws_what_the_whole_draws(rows, width, seed, rate, first):
    x, keys = normal(rows, width, seed=seed), np.random.default_rng(seed).integers(0, 2**32, rows, np.uint32)
    cut = min(first, width - 1)
    for kernels in (COMPILED, PLAIN):
        whole, part = np.empty_like(x), np.empty((rows, width - cut), np.float32)
        kernels.dropout(x, keys, 12345, rate, whole)
        kernels.dropout(np.ascontiguousarray(x[:, cut:]), keys, 12345, rate, part, cut)
        np.testing.assert_array_equal(part, whole[:, cut:])


@given(ROWS, WIDTH, SEED, st.sampled_from([0.0, 0.3, 0.999]))
def test_dropout_draws_the_same_bits(rows, width, seed, rate):
    x, keys = normal(rows, width, seed=seed), np.random.default_rng(seed).integers(0, 2**32, rows, np.uint32)
    ours, theirs = both("dropout", x, keys, 12345, rate, np.empty_like(x), out=4)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_array_equal(ours == 0, theirs == 0)


@given(ROWS, WIDTH, SEED, st.sampled_from([0.1, 3.0, 100.0]))
def test_cross_entropy(rows, classes, seed, size):
    z = normal(rows, classes, seed=seed) * np.float32(size)
    t = np.random.default_rng(seed).integers(0, classes, rows).astype(np.int32)
    np.testing.assert_allclose(*both("cross_entropy", z, t, np.zeros(5, np.float32), out=0), rtol=1e-4, atol=1e-6)
    ours, theirs = both("cross_entropy", z, t, np.ones(5, np.float32), out=2)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert ours[1] == theirs[1]


def test_of_equal_logits_the_first_is_the_guess_and_what_is_not_finite_shows_in_the_loss():
    z = np.array([[1, 2, 2], [np.nan, 0, 0], [0, np.inf, 0]], np.float32)
    for kernels in (COMPILED, PLAIN):
        sums = np.zeros(2, np.float32)
        kernels.cross_entropy(z[:1].copy(), np.array([1], np.int32), sums)
        assert sums[1] == 1
        for row in z[1:]:
            sums = np.zeros(2, np.float32)
            with np.errstate(invalid="ignore"):
                kernels.cross_entropy(row[None].copy(), np.array([0], np.int32), sums)
            assert not np.isfinite(sums[0])


def slots_of(count: int, n: int, seed: int, apart: int = 0) -> np.ndarray:
    """Slots of very different sizes, so that another order gives other bits; `apart` elements lie between them."""
    whole = normal(count, n + apart, seed=seed) * np.float32(10) ** np.arange(count, dtype=np.float32)[:, None]
    return whole[:, :n]


@given(st.integers(1, 5), st.integers(0, 9000), st.integers(0, 20), SEED)
def test_slots_are_summed_in_their_order(count, n, apart, seed):
    slots = slots_of(count, n, seed, apart)
    ours, theirs = np.empty(n, np.float32), np.empty(n, np.float32)
    COMPILED.sum_slots(ours, slots)
    PLAIN.sum_slots(theirs, slots)
    np.testing.assert_array_equal(ours, theirs)
    COMPILED.sum_slots(slots[0], slots)
    np.testing.assert_array_equal(slots[0], theirs)


@given(st.integers(0, 300), SEED, st.sampled_from([0.0, 0.1]))
def test_update_rules(n, seed, decay):
    w, m, g = (normal(n, seed=seed + k) for k in range(3))
    g, v = g[None], np.abs(normal(n, seed=seed + 3))
    np.testing.assert_allclose(*both("sgd", w, g, Pace(0.5, 0.1), decay, out=0), rtol=1e-5, atol=1e-6)
    for out in range(2):
        ours, theirs = both("momentum", w, m, g, Pace(0.5, 0.1), 0.9, decay, out=out)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for out in range(3):
        ours, theirs = both("adam", w, m, v, g, Pace(0.5, 0.1, 3), 0.9, 0.999, 1e-8, decay, 0.2, out=out)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


RULES = {
    "sgd": ((), (Pace(0.5, 0.1), 0.01)),
    "momentum": ((0,), (Pace(0.5, 0.1), 0.9, 0.01)),
    "adam": ((0, 0), (Pace(0.5, 0.1, 3), 0.9, 0.999, 1e-8, 0.01, 0.2)),
}


@pytest.mark.parametrize("rule", RULES)
@given(st.integers(1, 4), st.integers(0, 3000), SEED)
def test_a_rule_fed_with_slots_does_what_it_does_with_their_sum(rule, count, n, seed):
    """In the compiled kernels bit for bit, as they promise the order of the slots."""
    states, numbers = RULES[rule]
    slots, summed = slots_of(count, n, seed), np.empty((1, n), np.float32)
    COMPILED.sum_slots(summed[0], slots)
    results = []
    for kernels in (COMPILED, PLAIN):
        for g in (slots, summed):
            w, state = normal(n, seed=seed + 1), [np.full(n, 0.5, np.float32) for _ in states]
            getattr(kernels, rule)(w, *state, g, *numbers)
            results.append(w)
    for one, other in (results[:2], results[2:]):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_the_number_of_threads_changes_no_bit(threads):
    rows, width = LARGE
    z, t = normal(*LARGE), np.arange(rows, dtype=np.int32)
    flat = z.ravel()
    calls = [
        ("bias", (z, normal(width), True), 0),
        ("column_sums", (z, np.zeros(width, np.float32), False), 1),
        ("cross_entropy", (z, t, np.zeros(2, np.float32)), 0),
        ("cross_entropy", (z, t, np.zeros(2, np.float32)), 2),
        ("adam", (flat, flat, np.abs(flat), np.stack([flat] * 3), Pace(0.5, 0.1, 3), 0.9, 0.999, 1e-8, 0.0, 0.0), 0),
    ]
    images, keys = np.arange(rows * 200 * 4, dtype=np.uint8).reshape(rows, 800), np.arange(rows, dtype=np.uint32)
    one, how, x = np.ones(1, np.float32), Augmentation(40, 20, 1, 2, True, 0.5), np.empty((rows, 800), np.float32)
    calls.append(("gather_augmented", (Raw(images, t, one, one), t.astype(np.int64), keys, how, x, t.copy()), 4))
    for name, arguments, out in calls:
        results = []
        for count in (1, threads):
            with threadpoolctl.threadpool_limits(count):
                results.append(both(name, *arguments, out=out)[0])
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("library", [None, SimpleNamespace(VERSION=0)], ids=["none", "of another version"])
def test_without_the_library_numpys_expressions_serve(monkeypatch, library):
    monkeypatch.setitem(sys.modules, MODULE, library)
    assert isinstance(best_kernels(), Expressions)
    assert not isinstance(best_kernels(), OpenMP)


def test_what_is_no_array_is_refused():
    a = normal(3, 4)
    with pytest.raises(TypeError, match="wants a NumPy array, not 'a'"):
        COMPILED.column_sums("a", a, False)
    with pytest.raises(TypeError, match="2 arguments"):
        COMPILED.relu_gradient(a)


@given(st.integers(1, 70), st.integers(1, 5), st.integers(0, 50), SEED)
def test_permute_is_the_expression(n, columns, first, seed):
    keys = np.random.default_rng(seed).integers(0, 2**32, columns, np.uint32)
    first = min(first, n - 1)
    image, starts = np.empty((n - first, columns), np.int64), np.arange(columns) * 1000
    np.testing.assert_array_equal(*both("permute", image, first, n, keys, starts, out=0))
    wide = np.full((n - first, columns + 3), -1)
    COMPILED.permute(wide[:, 1:-2], first, n, keys, starts)
    PLAIN.permute(image, first, n, keys, starts)
    np.testing.assert_array_equal(wide[:, 1:-2], image)
    assert (wide[:, [0, -2, -1]] == -1).all()


@given(st.integers(0, 40), SEED)
def test_pick(rows, seed):
    index = np.random.default_rng(seed).integers(0, 50, rows)
    labels = np.arange(50, dtype=np.int32) * 7
    np.testing.assert_array_equal(*both("pick", labels, index, np.empty(rows, np.int32), out=2))


@given(WIDTH, SEED, st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0]))
def test_check_finds_what_is_not_finite_wherever_it_is(width, seed, value):
    a = normal(width * 3, seed=seed)
    a[seed % len(a)] = value
    with np.errstate(invalid="ignore"):
        ours, theirs = both("check", a, np.zeros(1, np.float32), out=1)
    assert bool(np.isnan(ours)) == bool(np.isnan(theirs)) == (not np.isfinite(value))


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@given(ROWS, WIDTH, WIDTH, SEED)
def test_products(biased, add, rows, inputs, outputs, seed):
    x, W, b = normal(rows, inputs, seed=seed), normal(inputs, outputs, seed=seed + 1), normal(outputs, seed=seed + 2)
    dy, dW, db = normal(rows, outputs, seed=seed + 3), normal(inputs, outputs, seed=seed + 4), b.copy()
    b, db = (b, db) if biased else (None, None)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(*both("linear", x, W, b, np.empty((rows, outputs), np.float32), biased, out=3), **close)
    np.testing.assert_allclose(*both("input_gradient", dy, W, np.empty_like(x), out=2), **close)
    for out in (2, 3) if biased else (2,):
        np.testing.assert_allclose(*both("weight_gradient", x, dy, dW, db, add, out=out), **close)


# (rows, inputs, outputs): whole tiles and parts of them in every direction, several blocks of k, what the BLAS takes.
PRODUCTS = [(64, 784, 128), (65, 130, 1100), (70, 1100, 67), (12, 49, 10), (5, 7, 65), (300, 193, 48), (600, 40, 900)]


@pytest.mark.parametrize("sizes", PRODUCTS)
def test_products_of_layers_and_that_other_rows_do_not_change_their_bits(sizes):
    rows, inputs, outputs = sizes
    x, W, dy = normal(rows, inputs, seed=1), normal(inputs, outputs, seed=2), normal(rows, outputs, seed=3)
    exact = [a.astype(float) for a in (x @ W.astype(float), dy @ W.T.astype(float), x.T @ dy.astype(float))]

    def products(count):
        y, dx, dW = np.empty((count, outputs), np.float32), np.empty((count, inputs), np.float32), np.empty_like(W)
        COMPILED.linear(x[:count], W, None, y, False)
        COMPILED.input_gradient(dy[:count], W, dx)
        COMPILED.weight_gradient(x[:count], dy[:count], dW, None, False)
        return y, dx, dW

    for threads in (3, 1):  # several are the BLAS's affair
        with threadpoolctl.threadpool_limits(threads):
            found, fewer = products(rows), products(rows - 1)
        for one, right in zip(found, exact, strict=True):
            np.testing.assert_allclose(one, right, rtol=1e-4, atol=1e-3)
    if "products" in COMPILED.name and 12 < rows <= 256:
        for all_rows, without_last in zip(found[:2], fewer[:2], strict=True):
            np.testing.assert_array_equal(all_rows[:-1], without_last)


def test_products_are_those_of_the_blas_where_it_is_made_to_be_the_same_on_older_cpus(monkeypatch):
    multiplied = (
        "import numpy as np\nfrom mpi_parallel.device.openmp import OpenMP\n"
        "kernels, a = OpenMP(), np.ones((64, 64), 'f')\n"
        "kernels.linear(a, a, None, out := np.empty_like(a), False)\nassert (out == 64).all()\nprint(kernels.name)"
    )
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    ended = subprocess.run([sys.executable, "-c", multiplied], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.startswith("OpenMP kernels (")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@given(WIDTH, SEED, st.integers(-20, 20))
def test_numbers_of_16_bits(precision, width, seed, exponent):
    a = normal(width, seed=seed) * np.float32(2.0**exponent)
    a[:: max(1, width // 5)] = [np.nan, np.inf, -np.inf, -0.0, 65519.9][seed % 5]
    ours, theirs = both("pack", a, np.empty(width, np.uint16), precision, out=1)
    numbers = both("unpack", ours, np.empty(width, np.float32), precision, out=1)
    np.testing.assert_array_equal(*numbers)
    np.testing.assert_array_equal(numbers[0], both("narrow", a, np.empty_like(a), precision, out=1)[0])
    np.testing.assert_array_equal(ours[np.isfinite(a)], theirs[np.isfinite(a)])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_every_number_of_16_bits_comes_back(precision):
    packed = np.arange(2**16, dtype=np.uint16)
    wide, again = both("unpack", packed, np.empty(2**16, np.float32), precision, out=1)
    np.testing.assert_array_equal(wide, again)
    back, _ = both("pack", wide, np.empty(2**16, np.uint16), precision, out=1)
    there = ~np.isnan(wide)
    np.testing.assert_array_equal(back[there], packed[there])
    assert np.isnan(both("unpack", back, wide, precision, out=1)[0][~there]).all()
