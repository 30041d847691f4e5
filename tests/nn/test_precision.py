"""Narrow numbers in matrix products: how they round, how far from float64 they lead, and how the loss is scaled."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device import Host
from mpi_parallel.device.expressions import Expressions
from mpi_parallel.device.openmp import OpenMP
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.precision import FIRST, FORMATS, PATIENCE, LossScale
from tests.launch import launch
from tests.nn.test_mlp import accumulate, batch, gradients
from tests.reference import Reference
from tests.samples import write_image_set

NARROW = FORMATS[1:]
UNIT = {"float32": 2.0**-24, "tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # of rounding
SPECIAL = [
    0.0,
    -0.0,
    65519.9,
    65520.0,
    -70000.0,
    2.0**-14,
    2.0**-24,
    2.0**-25,
    3.1e-8,
    1.5e-45,
    np.inf,
    -np.inf,
    np.nan,
]


def anything(seed: int) -> np.ndarray:
    """Random bits, random numbers of many sizes, and what is special."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2**32, 3000, np.uint32).view(np.float32)
    sizes = (random.normal(size=3000) * 2.0 ** random.integers(-30, 20, 3000)).astype(np.float32)
    ties = random.integers(0, 2**20, 2000).astype(np.float32) * np.float32(2.0**-12)
    return np.concatenate([bits, sizes, ties, np.array(SPECIAL, np.float32)])


def narrowed(kernels, a: np.ndarray, precision: str) -> np.ndarray:
    out = np.empty_like(a)
    kernels.narrow(a, out, precision)
    kernels.narrow(a, a, precision)  # in place
    np.testing.assert_array_equal(a, out)
    return out


class TestRounding:
    @pytest.mark.parametrize("precision", NARROW)
    @given(st.integers(0, 2**32 - 1))
    def test_kernels_agree(self, precision, seed):
        a = anything(seed)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(*(narrowed(k, a.copy(), precision) for k in (OpenMP(), Expressions(np))))

    @given(st.integers(0, 2**32 - 1))
    def test_float16_is_numpys(self, seed):
        a = anything(seed)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(narrowed(OpenMP(), a.copy(), "float16"), a.astype(np.float16).astype("f4"))

    @pytest.mark.parametrize(("precision", "kept"), [("bfloat16", 7), ("tf32", 10)])
    def test_takes_the_nearest_and_of_two_the_even_one(self, precision, kept):
        a = anything(0)
        a = a[np.isfinite(a) & (np.abs(a) < 3e38) & (np.abs(a) > 1e-37)]
        fraction, exponent = np.frexp(a.astype(float))
        expected = np.ldexp(np.rint(fraction * 2 ** (kept + 1)), exponent - kept - 1)  # rint: ties to even
        np.testing.assert_array_equal(narrowed(OpenMP(), a, precision), expected)

    def test_too_large_a_number_becomes_infinite(self):
        largest = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max], np.float32)
        assert narrowed(OpenMP(), largest, "bfloat16").tolist() == [np.inf, -np.inf]


class TestGradient:
    @pytest.mark.parametrize("precision", FORMATS)
    def test_is_the_references_to_the_unit_of_rounding(self, precision):
        model = MLP(Host(), (30, 24, 16, 5), seed=3, precision=precision)
        x_BI, t_B, keys_B = batch(40, 30, 5)
        for name in ("b0", "b1"):
            model.store.parameters[name].value[...] = 5.0  # no unit near its kink, over which rounding could take it
        model.store.narrow()
        accumulate(model, model.workspace.narrowed(x_BI.copy()), t_B, keys_B)
        _, _, expected = Reference(model.weights()).gradient(x_BI, t_B)
        for ours, theirs in zip(gradients(model), expected, strict=True):
            error = np.linalg.norm(ours / model.store.loss_scale.value - theirs) / np.linalg.norm(theirs)
            assert error < 8 * UNIT[precision]
            assert error > UNIT[precision] / 100, "nothing was rounded"

    @pytest.mark.parametrize("precision", NARROW)
    def test_what_goes_into_products_is_narrow_and_what_comes_out_is_not(self, precision, monkeypatch):
        model = MLP(Host(), (12, 9, 7, 4), dropout=0.3, precision=precision)
        operands, product = [], np.matmul
        model.workspace.kernels = Expressions(np)  # the compiled kernels take their products elsewhere

        def matmul(a, b, out):
            operands.extend((a.copy(), b.copy()))
            return product(a, b, out=out)

        x_BI, t_B, keys_B = batch(10, 12, 4)
        model.store.narrow()
        x_BI = model.workspace.narrowed(x_BI)
        monkeypatch.setattr(np, "matmul", matmul)
        accumulate(model, x_BI, t_B, keys_B)
        assert len(operands) == 2 * (3 + 3 + 2)
        for operand in operands:
            np.testing.assert_array_equal(operand, narrowed(OpenMP(), np.ascontiguousarray(operand), precision))
        wide = model.store.gradients.copy()
        assert not np.array_equal(wide, narrowed(OpenMP(), wide.copy(), precision))

    def test_small_gradients_live_only_when_scaled(self):
        """What float16 would flush to zero comes through, times the scale."""
        dz = np.full((1, 4), 1e-9, np.float32)
        ours, lost = dz * np.float32(FIRST), dz
        assert narrowed(OpenMP(), ours, "float16").all()
        assert not narrowed(OpenMP(), lost, "float16").any()


class TestLossScale:
    def test_grows_after_a_while_without_overflow(self):
        scale = LossScale("float16")
        for _ in range(PATIENCE):
            assert scale.value == FIRST
            assert not scale.update(True, 1.0)
        assert (scale.value, scale.skipped) == (2 * FIRST, 0)

    def test_halves_and_forgives_until_it_cannot_be_the_reason(self):
        scale = LossScale("float16")
        halvings = int(np.log2(FIRST))
        assert [scale.update(False, 1.0) for _ in range(halvings + 1)] == [True] * halvings + [False]
        assert (scale.value, scale.skipped, scale.good) == (1.0, halvings, 0)

    def test_is_not_the_reason_when_the_loss_itself_is_bad(self):
        assert not LossScale("float16").update(False, float("nan"))

    @pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
    def test_is_for_float16_alone(self, precision):
        scale = LossScale(precision)
        assert not scale.update(False, 1.0)
        assert [scale.update(True, 1.0) for _ in range(PATIENCE)] == [False] * PATIENCE
        assert scale.value == 1.0

    def test_goes_on_from_its_state(self):
        scale, other = LossScale("float16"), LossScale("float16")
        scale.update(False, 1.0)
        scale.update(True, 1.0)
        other.restore(json.loads(json.dumps(scale.state())))
        assert (other.value, other.good, other.skipped) == (FIRST / 2, 1, 1)


def test_a_run_tells_its_precision_and_its_scale(tmp_path):
    data = write_image_set(tmp_path / "set.h5")
    command = "-m", "mpi_parallel.train", "--data", data, "--out", tmp_path / "run", "--batch-size", "8"
    done = launch(2, *command, "--epochs", "2", "--precision", "float16")
    assert done.returncode == 0, done.stderr
    assert "precision   float16 in matrix products" in done.stdout + done.stderr
    start, *epochs, _, _ = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert start["precision"] == "float16"
    assert [(epoch["loss_scale"], epoch["skipped_steps"]) for epoch in epochs] == [(FIRST, 0)] * 2
