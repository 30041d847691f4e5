"""What cublasLt is asked for, by a library that computes with NumPy; numbers and structures against the real one."""

import ctypes
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from mpi_parallel.device import cublaslt_library as lt
from mpi_parallel.device.cublaslt import CublasLt, Problem, mask_ld
from mpi_parallel.device.cuda import Cuda
from mpi_parallel.device.cuda_products import CudaProducts
from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.tuning import Tuning
from tests.device.emulated import emulated
from tests.device.fake_lt import SIZES, FakeLt
from tests.device.operands import TYPES, normal, to_bits, to_numbers
from tests.device.shim import compiler
from tests.device.strict import StrictArray
from tests.device.where import Place, on, values
from tests.once import once

pytestmark = once

FUSED = (lt.BIAS, lt.RELU_BIAS, lt.RELU_AUX_BIAS, lt.DRELU, lt.BGRADA)
SHAPES = [(0, 3, 4), (1, 1, 1), (5, 7, 3), (20, 130, 10)]  # rows, inputs, outputs
PLAIN = Expressions(np)


def products(refused: tuple[int, ...] = (), time=None) -> CudaProducts:
    compiler()
    cupy = emulated()
    library = FakeLt(cupy.do, refused)
    return CudaProducts(cupy, CublasLt(library, 4096, 1001, time))


EVERY = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param(products, id="fused"),
        pytest.param(lambda: products((lt.RELU_AUX_BIAS,)), id="no mask"),
        pytest.param(lambda: products((lt.DRELU,)), id="no masked product"),
        pytest.param(lambda: products(FUSED), id="plain"),
        pytest.param(lambda: products((*FUSED, lt.PLAIN)), id="nothing"),
        pytest.param(lambda: CudaProducts(emulated(), None), id="no library"),
        pytest.param(None, id="gpu", marks=pytest.mark.gpu),
    ],
)


def close(kind: str) -> dict[str, float]:
    return {
        "f32": {"rtol": 1e-5, "atol": 1e-5},
        "f16": {"rtol": 3e-3, "atol": 3e-3},
        "bf16": {"rtol": 2e-2, "atol": 2e-2},
    }[kind]


@EVERY
@pytest.mark.parametrize("kind", TYPES)
def test_a_layer_forward_and_backward_is_that_of_the_expressions(kernels, kind, monkeypatch):
    if kernels is None:
        monkeypatch.setattr(Place, "gpu", Cuda(0))
    kernels = kernels() if kernels else Place.gpu.kernels
    for rows, inputs, outputs in SHAPES:
        x, W, dy = (to_bits(normal(*s), kind) for s in ((rows, inputs), (inputs, outputs), (rows, outputs)))
        z = to_numbers(x, kind)  # none of them 0, of which no mask has to tell whether it is positive
        x = np.maximum(z, 0)  # the output of a relu
        b = normal(outputs, seed=1)
        y, expected = on(np.zeros((rows, outputs), TYPES[kind])), np.zeros((rows, outputs), np.float32)
        mask = on(np.zeros((rows, kernels.mask_bytes(outputs)), np.uint8)) if kernels.lt else None
        kernels.linear(on(to_bits(x, kind)), on(W), on(to_bits(b, kind)), y, True, mask)
        PLAIN.linear(x, to_numbers(W, kind), to_numbers(to_bits(b, kind), kind), expected, True)
        np.testing.assert_allclose(to_numbers(values(y), kind), expected, **close(kind))

        logits, plain = on(np.zeros((rows, outputs), np.float32)), np.zeros((rows, outputs), np.float32)
        kernels.linear(on(to_bits(x, kind)), on(W), None, logits, False)
        PLAIN.linear(x, to_numbers(W, kind), None, plain, False)
        np.testing.assert_allclose(values(logits), plain, **close(kind))

        # The gradient of what the layer below gives, and of what is below its relu, by the mask that it has kept.
        dx, expected_dx = on(np.zeros((rows, inputs), TYPES[kind])), np.zeros((rows, inputs), np.float32)
        PLAIN.input_gradient(to_numbers(dy, kind), to_numbers(W, kind), expected_dx)
        kernels.input_gradient(on(dy), on(W), dx)
        np.testing.assert_allclose(to_numbers(values(dx), kind), expected_dx, **close(kind))
        below = on(np.zeros((rows, kernels.mask_bytes(inputs)), np.uint8)) if kernels.lt else None
        eye, nothing = on(to_bits(np.eye(inputs, dtype=np.float32), kind)), on(np.zeros(inputs, TYPES[kind]))
        again = on(np.zeros((rows, inputs), TYPES[kind]))
        kernels.linear(on(to_bits(z, kind)), eye, nothing, again, True, below)
        kernels.input_gradient(on(dy), on(W), dx, again, below)
        np.testing.assert_allclose(to_numbers(values(dx), kind), expected_dx * (x > 0), **close(kind))

        for add in (False, True):
            dW, db = normal(inputs, outputs, seed=5), normal(outputs, seed=6)
            ours, ours_b = on(dW), on(db)
            kernels.weight_gradient(on(to_bits(x, kind)), on(dy), ours, ours_b, add)
            PLAIN.weight_gradient(x, to_numbers(dy, kind), dW, db, add)
            np.testing.assert_allclose(values(ours), dW, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(values(ours_b), db, rtol=1e-4, atol=1e-4)


def test_columns_of_a_wider_array_are_multiplied_where_they_lie():
    kernels, x, W = products(), normal(6, 9), normal(4, 3)
    y, expected = on(np.zeros((6, 3), np.float32)), x[:, 2:6] @ W
    kernels.linear(StrictArray(x)[:, 2:6], on(W), None, y, False)
    np.testing.assert_allclose(values(y), expected, rtol=1e-5, atol=1e-6)


def test_a_plan_is_made_once_and_points_to_where_the_numbers_are_now():
    kernels = products()
    x, W = on(normal(4, 8)), on(normal(8, 4))
    for seed in range(3):
        b, y = on(normal(4, seed=seed)), on(np.zeros((4, 4), np.float32))
        kernels.linear(x, W, b, y, False)
        np.testing.assert_allclose(values(y), values(x) @ values(W) + values(b), rtol=1e-5, atol=1e-5)
    library = kernels.lt.library
    assert len(library.asked) == len(library.descriptions) == 1
    assert library.preferences == {}


def test_a_bias_that_lies_oddly_is_added_by_itself():
    kernels, x, W, b = products(), on(normal(4, 8)), on(normal(8, 4)), on(normal(5))
    start = 1 if b.data.ptr % lt.BIAS_ALIGNMENT == 0 else 0
    y = on(np.zeros((4, 4), np.float32))
    kernels.linear(x, W, b[start : start + 4], y, False)
    np.testing.assert_allclose(values(y), values(x) @ values(W) + values(b)[start : start + 4], rtol=1e-5, atol=1e-5)
    assert [asked["about"][lt.EPILOGUE] for asked in kernels.lt.library.asked] == [lt.PLAIN]


@pytest.mark.parametrize("measured", [True, False])
def test_an_algorithm_that_is_proposed_and_refused_leaves_the_next_one(measured):
    kernels = products(time=(lambda launch: launch() or 1.0) if measured else None)
    library = kernels.lt.library
    run = library.cublasLtMatmul
    library.cublasLtMatmul = lambda *given: 15 if given[12].data[0] == 1 else run(*given)
    x, W, y = on(normal(4, 8)), on(normal(8, 4)), on(np.zeros((4, 4), np.float32))
    for _ in range(2):
        y.fill(0)
        kernels.linear(x, W, None, y, False)
        np.testing.assert_allclose(values(y), values(x) @ values(W), rtol=1e-5, atol=1e-5)
    assert set(library.run) == {2}
    assert kernels.capturable


def test_the_fastest_algorithm_is_taken_when_measured_and_the_first_one_else():
    seconds = iter([3.0, 1.0, 2.0, 1.5])  # in turn, of which the shortest counts

    def time(launch) -> float:
        launch()
        return next(seconds)

    for kernels, taken in ((products(time=time), [1, 2, 1, 2, 2, 2]), (products(), [1, 1])):
        for _ in range(2):
            kernels.linear(on(normal(4, 8)), on(normal(8, 4)), None, on(np.zeros((4, 4), np.float32)), False)
        assert kernels.lt.library.run == taken


def test_what_is_added_is_added_once_also_when_algorithms_are_measured():
    kernels = products(time=lambda launch: launch() or 1.0)
    x, dy, dW = normal(4, 8), normal(4, 3), on(np.ones((8, 3), np.float32))
    kernels.weight_gradient(on(x), on(dy), dW, None, True)
    np.testing.assert_allclose(values(dW), 1 + x.T @ dy, rtol=1e-5, atol=1e-5)


class Slow:
    """Times with a library that has no fast kernel for some epilogues; a launch of our own kernels takes 1."""

    def __init__(self, slow: tuple[int, ...], price: float = 9.0) -> None:
        self.slow, self.price, self.measured = slow, price, 0

    def __call__(self, launch) -> float:
        self.measured += 1
        asked, events = self.library.epilogues, self.events
        asked.clear(), events.clear()
        launch()
        return sum(self.price if epilogue in self.slow else 2.0 for epilogue in asked) + len(events) - len(asked)


def timed(time: Slow, path: Path | None = None) -> CudaProducts:
    compiler()
    cupy = emulated()
    time.library, time.events = FakeLt(cupy.do), cupy.events
    return CudaProducts(cupy, CublasLt(time.library, 4096, 1001, time, Tuning(path)))


def taken(kernels: CudaProducts, kind: str) -> list[list[int]]:
    """The epilogues of two layers' products forward, of dx behind a relu, and of dW and db; all compared with NumPy."""
    library, every = kernels.lt.library, []
    x, W, dy = (to_bits(np.abs(normal(*s)), kind) for s in ((6, 8), (8, 4), (6, 4)))
    b, dx, mask = to_bits(normal(4), kind), on(np.zeros((6, 8), TYPES[kind])), on(np.zeros((6, 16), np.uint8))
    below = on(np.zeros((6, 8), TYPES[kind]))
    eye = on(to_bits(np.eye(8, dtype=np.float32), kind))
    y, dW, db = on(np.zeros((6, 4), TYPES[kind])), on(np.zeros((8, 4), np.float32)), on(np.zeros(4, np.float32))
    for _ in range(2):
        every.clear()
        for work in (
            lambda: kernels.linear(on(x), on(W), on(b), y, True),
            lambda: kernels.linear(on(x), eye, on(np.zeros(8, TYPES[kind])), below, True, mask),
            lambda: kernels.input_gradient(on(dy), on(W), dx, below, mask),
            lambda: kernels.weight_gradient(on(x), on(dy), dW, db, False),
        ):
            library.epilogues.clear()
            work()
            every.append(list(library.epilogues))
    wide_x, wide_W, wide_dy = (to_numbers(a, kind) for a in (x, W, dy))
    expected = np.maximum(wide_x @ wide_W + to_numbers(b, kind), 0)
    np.testing.assert_allclose(to_numbers(values(y), kind), expected, **close(kind))
    np.testing.assert_allclose(to_numbers(values(dx), kind), (wide_dy @ wide_W.T) * (wide_x > 0), **close(kind))
    np.testing.assert_allclose(values(dW), wide_x.T @ wide_dy, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(values(db), wide_dy.sum(axis=0), rtol=1e-4, atol=1e-4)
    return every


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("slow", [(), (lt.DRELU,), (lt.BGRADA,), FUSED], ids=str)
def test_what_follows_a_product_is_done_apart_where_that_is_faster(kind, slow, tmp_path):
    """As with bfloat16 on Hopper, for which there is no fast product that ends with the gradient of a relu."""
    wished = [[lt.RELU_BIAS], [lt.RELU_AUX_BIAS], [lt.DRELU], [lt.BGRADA]]
    expected = [[lt.PLAIN] if set(one) & set(slow) else one for one in wished]
    if slow == FUSED:
        expected[2] = [lt.PLAIN]  # there is no mask
    measured = []
    for _ in range(2):  # a later process knows it from the first
        time = Slow(slow)
        assert taken(timed(time, tmp_path / "kept.json"), kind) == expected
        measured.append(time.measured)
    assert measured[1] < measured[0]  # if anything, algorithms for arrays that lie otherwise


def test_a_mask_that_costs_little_is_kept_for_the_way_back():
    assert taken(timed(Slow((lt.RELU_AUX_BIAS,), price=2.05)), "bf16")[1:3] == [[lt.RELU_AUX_BIAS], [lt.DRELU]]
    assert taken(timed(Slow((lt.RELU_AUX_BIAS,), price=2.2)), "bf16")[1:3] == [[lt.RELU_BIAS], [lt.PLAIN]]


@pytest.mark.parametrize(("tf32", "compute"), [(False, 68), (True, 77)])
def test_tf32_is_asked_for_by_name(tf32, compute):
    kernels = products()
    kernels.lt.tf32 = tf32
    kernels.linear(on(normal(4, 8)), on(normal(8, 4)), None, on(np.zeros((4, 4), np.float32)), False)
    assert kernels.lt.library.asked[0]["about"]["compute"] == compute


def test_the_library_is_told_how_addresses_are_aligned():
    kernels, block = products(), np.zeros(4096, np.float32)
    start = -block.ctypes.data % 256 // 4
    x, W = StrictArray(block[start + 1 :][:32].reshape(4, 8)), StrictArray(block[start + 1024 :][:64].reshape(8, 8))
    kernels.linear(x, W, None, StrictArray(block[start + 2048 :][:32].reshape(4, 8)), False)
    asked = kernels.lt.library.asked[0]
    assert [asked[wish] for wish in lt.ALIGNMENTS] == [32, 4, 32, 32]  # of W, x, y and y
    assert asked[lt.MAX_WORKSPACE] == lt.WORKSPACE


@pytest.mark.parametrize("kind", TYPES)
def test_no_sum_is_made_of_16_bit_numbers(kind):
    """What takes its terms in parts may put these together in float32 alone, whatever the result is of."""
    kernels = products()
    operands = (on(to_bits(normal(*shape), kind)) for shape in ((4, 8), (8, 4)))
    kernels.linear(*operands, None, on(np.zeros((4, 4), TYPES[kind])), False)
    assert [asked[lt.REDUCTIONS] for asked in kernels.lt.library.asked] == [lt.IN_FLOAT32]


def test_a_library_that_fails_is_told():
    kernels = products()
    kernels.lt.library.cublasLtMatmulDescCreate = lambda *_: 14
    with pytest.raises(lt.LtError, match="cublasLtMatmulDescCreate answers with status 14"):
        kernels.linear(on(normal(4, 8)), on(normal(8, 4)), None, on(np.zeros((4, 4), np.float32)), False)


@pytest.mark.parametrize(("width", "bits"), [(1, 128), (128, 128), (129, 256)])
def test_columns_of_a_mask(width, bits):
    assert mask_ld(width) == bits


def wheel(pattern: str) -> Path:
    """A file of NVIDIA's wheels for cuBLAS, which only machines with a GPU need."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [path for folder in folders for path in Path(folder).glob(pattern)]
    return found[0] if found else pytest.skip("no cuBLAS here: the wheel nvidia-cublas-cu12 brings one")


class TestAgainstTheRealLibrary:
    def test_all_functions_are_there(self):
        library = lt.load(lambda: str(wheel("cu*/lib/libcublasLt.so.*")), 12)
        assert all(hasattr(library, name) for name in lt.SIGNATURES)

    def test_numbers_and_structures_are_those_of_the_header(self, tmp_path):
        folder = wheel("cu*/include/cublasLt.h").parent
        text = (folder / "cublasLt.h").read_text() + (folder / "cublas_api.h").read_text()
        numbers = {
            "MATMUL_DESC_TRANSA": lt.TRANSA, "MATMUL_DESC_TRANSB": lt.TRANSB, "MATMUL_DESC_EPILOGUE": lt.EPILOGUE,
            "MATMUL_DESC_BIAS_POINTER": lt.BIAS_POINTER, "MATMUL_DESC_EPILOGUE_AUX_POINTER": lt.AUX_POINTER,
            "MATMUL_DESC_EPILOGUE_AUX_LD": lt.AUX_LD,
            "MATMUL_PREF_MAX_WORKSPACE_BYTES": lt.MAX_WORKSPACE,
            "MATMUL_PREF_REDUCTION_SCHEME_MASK": lt.REDUCTIONS, "REDUCTION_SCHEME_COMPUTE_TYPE": lt.IN_FLOAT32,
            **{f"MATMUL_PREF_MIN_ALIGNMENT_{m}_BYTES": n for m, n in zip("ABCD", lt.ALIGNMENTS, strict=True)},
            "EPILOGUE_DEFAULT": lt.PLAIN, "EPILOGUE_BIAS": lt.BIAS, "EPILOGUE_BGRADA": lt.BGRADA,
        }  # fmt: skip
        for name, number in numbers.items():
            assert re.search(rf"\bCUBLASLT_{name} = {number},", text), name
        assert re.search(rf"CUBLAS_COMPUTE_32F\s+= {lt.COMPUTE_32F},", text)
        assert re.search(rf"CUBLAS_COMPUTE_32F_FAST_TF32\s+= {lt.COMPUTE_TF32},", text)
        assert (lt.RELU_BIAS, lt.RELU_AUX_BIAS, lt.DRELU) == (2 | 4, 2 | 4 | 128, 8 | 128)
        assert "CUBLASLT_EPILOGUE_RELU = 2," in text
        assert "CUBLASLT_EPILOGUE_DRELU = 8 | 128," in text
        assert re.search(r"uint64_t data\[8\];\s*} cublasLtMatmulAlgo_t;", text)

    def test_attributes_are_taken_and_given_back(self):
        """Descriptions of products need no GPU."""
        library = lt.load(lambda: str(wheel("cu*/lib/libcublasLt.so.*")), 12)
        product = CublasLt.__new__(CublasLt)  # whose creation would need one
        product.library = library
        operand = ("float32", 4, 8, 4, 16)
        problem = Problem(operand, operand, operand, (True, False), lt.RELU_AUX_BIAS, False, True)
        description = product._describe(problem, 130)
        product._point(description, 4096, 8192)
        expected = {lt.TRANSA: 1, lt.TRANSB: 0, lt.EPILOGUE: 134, lt.BIAS_POINTER: 4096, lt.AUX_POINTER: 8192,
                    lt.AUX_LD: 256}  # fmt: skip
        for attribute, value in expected.items():
            got, written = ctypes.c_uint64(), ctypes.c_size_t()
            size = ctypes.c_size_t(SIZES[attribute])
            get = library.cublasLtMatmulDescGetAttribute
            assert get(description, attribute, ctypes.byref(got), size, ctypes.byref(written)) == 0
            assert (got.value, written.value) == (value, SIZES[attribute])

    def test_structures_have_the_sizes_of_the_header(self):
        assert ctypes.sizeof(lt.Algorithm) == 64
        assert ctypes.sizeof(lt.Heuristic) == 64 + 8 + 4 + 4 + 16
        assert lt.Heuristic.state.offset == 72
