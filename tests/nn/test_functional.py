"""Each operation against float64 and its gradient against central differences.

Shapes as in functional.py: B rows, I inputs, O outputs, K classes, U units.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device import Host
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.nn import functional as F
from tests.reference import log_softmax

SIZES = st.integers(1, 7)
ROWS = st.integers(0, 7)
SEEDS = st.integers(0, 2**32 - 1)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def differences(f, x: np.ndarray, h: float) -> np.ndarray:
    """df/dx of the number f(x) by central differences; h is a power of two, so that x +- h is nearly exact."""
    slopes = np.empty(x.shape)
    for place in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[place] += h
        below[place] -= h
        slopes[place] = (f(above) - f(below)) / (float(above[place]) - float(below[place]))
    return slopes


def weighted(y: np.ndarray, dy: np.ndarray) -> float:
    """A number whose gradient with respect to y is dy."""
    return float(np.sum(y.astype(np.float64) * dy))


@pytest.fixture
def ws() -> Workspace:
    return Workspace(Host())


class TestLinear:
    @given(ROWS, SIZES, SIZES, SEEDS)
    def test_is_that_of_float64(self, B, I, O, seed):  # noqa: E741
        x_BI, W_IO, b_O = normal(B, I, seed=seed), normal(I, O, seed=seed), normal(O, seed=seed)
        y_BO = F.linear(Workspace(Host()), x_BI, W_IO, b_O)
        assert y_BO.dtype == np.float32
        np.testing.assert_allclose(y_BO, x_BI.astype(float) @ W_IO + b_O, atol=1e-5)

    def test_gradients_are_those_of_finite_differences(self, ws):
        x_BI, W_IO, b_O, dy_BO = normal(5, 4), normal(4, 3), normal(3), normal(5, 3)
        dW_IO, db_O = np.zeros_like(W_IO), np.zeros_like(b_O)
        F.linear_weight_gradient(ws, x_BI, dy_BO, dW_IO, db_O, add=True)
        dx_BI = F.linear_input_gradient(ws, dy_BO, W_IO)
        # y is linear in each argument: a wide difference is exact up to rounding.
        for argument, gradient in enumerate((dx_BI, dW_IO, db_O)):

            def loss(value, argument=argument):
                arguments = [x_BI, W_IO, b_O]
                arguments[argument] = value
                return weighted(F.linear(ws, *arguments), dy_BO)

            np.testing.assert_allclose(gradient, differences(loss, (x_BI, W_IO, b_O)[argument], 0.5), atol=1e-5)

    @given(ROWS, SIZES, SIZES, SEEDS)
    def test_gradients_are_those_of_float64(self, B, I, O, seed):  # noqa: E741
        x_BI, W_IO, dy_BO = normal(B, I, seed=seed), normal(I, O, seed=seed), normal(B, O, seed=seed)
        dW_IO, db_O = np.zeros((I, O), np.float32), np.zeros(O, np.float32)
        ws = Workspace(Host())
        F.linear_weight_gradient(ws, x_BI, dy_BO, dW_IO, db_O, add=True)
        np.testing.assert_allclose(dW_IO, x_BI.astype(float).T @ dy_BO, atol=1e-5)
        np.testing.assert_allclose(db_O, dy_BO.astype(float).sum(axis=0), atol=1e-5)
        np.testing.assert_allclose(F.linear_input_gradient(ws, dy_BO, W_IO), dy_BO.astype(float) @ W_IO.T, atol=1e-5)

    def test_weight_gradients_add_to_what_is_there(self, ws):
        x_BI, dy_BO = normal(5, 4), normal(5, 3)
        dW_IO, db_O = np.zeros((4, 3), np.float32), np.zeros(3, np.float32)
        F.linear_weight_gradient(ws, x_BI, dy_BO, dW_IO, db_O, add=True)
        once = dW_IO.copy(), db_O.copy()
        F.linear_weight_gradient(ws, x_BI, dy_BO, dW_IO, db_O, add=True)
        np.testing.assert_array_equal(dW_IO, 2 * once[0])
        np.testing.assert_allclose(db_O, 2 * once[1], rtol=1e-6)

    def test_arguments_are_left_alone(self, ws):
        arguments = [normal(5, 4), normal(4, 3), normal(3), normal(5, 3)]
        kept = [array.copy() for array in arguments]
        x_BI, W_IO, b_O, dy_BO = arguments
        F.linear(ws, x_BI, W_IO, b_O)
        F.linear_input_gradient(ws, dy_BO, W_IO)
        F.linear_weight_gradient(ws, x_BI, dy_BO, np.zeros_like(W_IO), np.zeros_like(b_O), add=False)
        for array, copy in zip(arguments, kept, strict=True):
            np.testing.assert_array_equal(array, copy)


class TestReLU:
    @staticmethod
    def relu(ws, x):
        """relu as the fused layer has it: x times the unit matrix, no bias."""
        return F.linear(ws, x, np.eye(x.shape[1], dtype=np.float32), np.zeros(x.shape[1], np.float32), relu=True)

    def test_values_and_gradient_on_both_sides_of_zero_and_at_it(self, ws):
        x = np.array([[-2, -1e-30, -0.0, 0.0, 1e-30, 3]], np.float32)
        y = self.relu(ws, x)
        assert y.tolist() == [[0, 0, 0, 0, np.float32(1e-30), 3]]
        assert F.relu_gradient(ws, np.full(x.shape, 5, np.float32), y).tolist() == [[0, 0, 0, 0, 5, 5]]

    def test_gradient_is_that_of_finite_differences(self, ws):
        x, dy = normal(6, 5), normal(6, 5, seed=1)
        h = 2.0**-6
        x[np.abs(x) < 2 * h] = 1  # away from the kink
        dx = F.relu_gradient(ws, dy.copy(), self.relu(ws, x))
        np.testing.assert_allclose(dx, differences(lambda x: weighted(self.relu(ws, x), dy), x, h), atol=1e-4)

    def test_what_is_not_a_number_stays_so_and_is_found_by_the_step(self, ws):
        assert np.isnan(self.relu(ws, np.array([[np.nan]], np.float32))).all()


class TestSoftmaxCrossEntropy:
    @staticmethod
    def run(z_BK, t_B):
        """Loss, number correct and dz; z is used up, so a copy goes in."""
        tail = np.zeros(4, np.float32)
        dz_BK = F.softmax_cross_entropy(Workspace(Host()), z_BK.copy(), np.asarray(t_B, np.int32), tail)
        assert tail[2:].tolist() == [0, 0]
        return float(tail[0]), int(tail[1]), dz_BK

    @given(ROWS, st.integers(1, 12), SEEDS, st.sampled_from([0.01, 1.0, 30.0]))
    def test_is_that_of_float64(self, B, K, seed, scale):
        z_BK = normal(B, K, seed=seed) * np.float32(scale)
        t_B = np.random.default_rng(seed).integers(K, size=B)
        loss, correct, dz_BK = self.run(z_BK, t_B)
        log_p_BK = log_softmax(z_BK.astype(float))
        assert loss == pytest.approx(-log_p_BK[np.arange(B), t_B].sum(), rel=1e-5, abs=1e-5)
        assert correct == (z_BK.argmax(axis=1) == t_B).sum()
        np.testing.assert_allclose(dz_BK, np.exp(log_p_BK) - np.eye(K)[t_B], atol=1e-6)

    def test_gradient_is_that_of_finite_differences(self):
        z_BK, t_B = normal(4, 5), [0, 4, 2, 2]
        # One row at a time: the loss of a few rows has more digits than that of many.
        for z_K, t, dz_K in zip(z_BK, t_B, self.run(z_BK, t_B)[2], strict=True):
            slopes = differences(lambda z, t=t: self.run(z[None], [t])[0], z_K, 2.0**-5)
            np.testing.assert_allclose(dz_K, slopes, atol=2e-4)

    @pytest.mark.parametrize("large", [1e4, 1e30, 1.7e38])
    def test_large_logits_do_not_overflow(self, large):
        z_BK = np.array([[large, 0, -large], [-large, -large, -large]], np.float32)
        loss, correct, dz_BK = self.run(z_BK, [0, 1])
        assert loss == pytest.approx(np.log(3), rel=1e-6)
        assert correct == 1
        np.testing.assert_allclose(dz_BK, [[0, 0, 0], [1 / 3, -2 / 3, 1 / 3]], atol=1e-6)

    def test_a_confident_mistake_costs_its_logit(self):
        loss, correct, dz_BK = self.run(np.array([[1000, 0]], np.float32), [1])
        assert (loss, correct, dz_BK.tolist()) == (1000, 0, [[1, -1]])

    @given(st.floats(-100, 100, width=32), SEEDS)
    def test_a_constant_added_to_a_row_changes_nothing(self, constant, seed):
        z_BK, t_B = np.round(normal(3, 4, seed=seed) * 64) / 64, [0, 1, 3]
        shifted_BK = z_BK + np.float32(round(constant * 64) / 64)  # sixty-fourths: exact
        for one, other in zip(self.run(z_BK, t_B), self.run(shifted_BK, t_B), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_of_equal_logits_the_first_is_the_guess(self):
        z_BK = np.array([[1, 2, 2]], np.float32)
        assert [self.run(z_BK, [target])[1] for target in range(3)] == [0, 1, 0]

    def test_sums_are_added_to_the_tail(self):
        z_BK, tail = normal(3, 4), np.array([10, 20, 30, 40], np.float32)
        t_B = z_BK.argmax(axis=1)
        loss, correct, _ = self.run(z_BK, t_B)
        F.softmax_cross_entropy(Workspace(Host()), z_BK, t_B.astype(np.int32), tail)
        assert correct == 3
        assert tail.tolist() == [np.float32(10) + np.float32(loss), 23, 30, 40]

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_logits_that_are_not_finite_make_the_loss_so(self, bad):
        with np.errstate(invalid="ignore"):
            assert not np.isfinite(self.run(np.array([[1, bad, 2]], np.float32), [0])[0])


class TestDropoutMask:
    KEYS_B = np.random.default_rng(3).integers(2**32, size=400, dtype=np.uint32)

    def mask(self, keys_B=KEYS_B, width=300, layer=0, rate=0.5):
        return F.dropout(Workspace(Host()), np.ones((len(keys_B), width), np.float32), keys_B, layer, rate)

    @pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
    def test_drops_its_share_and_keeps_the_mean(self, rate):
        mask_BU = self.mask(rate=rate)
        assert mask_BU.dtype == np.float32
        assert np.unique(mask_BU).tolist() == [0, np.float32(1 / (1 - rate))]
        deviation = np.sqrt(rate * (1 - rate) / mask_BU.size)
        assert (mask_BU == 0).mean() == pytest.approx(rate, abs=4 * deviation)

    def test_rate_zero_drops_nothing(self):
        assert (self.mask(rate=0.0) == 1).all()

    @given(st.lists(st.integers(0, 399), max_size=9), st.integers(1, 40), st.integers(0, 5))
    def test_depends_on_the_key_the_layer_and_the_unit_alone(self, rows, width, layer):
        """Neither on the other rows of the batch nor on their order nor on how many units there are."""
        part = self.mask(self.KEYS_B[rows], width, layer)
        np.testing.assert_array_equal(part, self.mask(layer=layer)[rows][:, :width])

    def test_rates_are_nested(self):
        """What a low rate drops a higher one drops too: the threshold moves, the bits don't."""
        assert not self.mask(rate=0.5)[self.mask(rate=0.2) == 0].any()

    def test_rows_units_and_layers_are_uncorrelated(self):
        first_BU, second_BU = (self.mask(layer=layer) - 1 for layer in (0, 1))
        bound = 5 / np.sqrt(first_BU.size)
        assert abs((first_BU * second_BU).mean()) < bound  # the same unit in two layers
        assert abs((first_BU[1:] * first_BU[:-1]).mean()) < bound  # neighbouring rows
        assert abs((first_BU[:, 1:] * first_BU[:, :-1]).mean()) < bound  # neighbouring units
        for axis, n in ((0, 400), (1, 300)):
            sums = (first_BU * np.sqrt(n)).mean(axis=axis)
            assert np.abs(sums).max() < 4.5  # no row or unit is favoured
            assert sums.std() == pytest.approx(1, abs=0.15)

    def test_neighbouring_keys_are_uncorrelated(self):
        """Keys need not be random themselves."""
        mask_BU = self.mask(np.arange(400, dtype=np.uint32)) - 1
        correlations = (mask_BU @ mask_BU.T) / 300
        np.fill_diagonal(correlations, 0)
        assert np.abs(correlations).max() < 5.5 / np.sqrt(300)
