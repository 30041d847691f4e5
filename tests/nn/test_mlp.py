"""The whole network: against the float64 reference, against finite differences, and its first weights."""

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device import Host
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.nn import functional as F
from mpi_parallel.nn.mlp import MLP, glorot_uniform, weights_sha256
from mpi_parallel.nn.store import CORRECT, COUNT, LOSS, STOP
from tests.once import once
from tests.reference import Reference

pytestmark = once


def network(widths: Sequence[int], dropout: float = 0.0, seed: int = 3) -> MLP:
    """One with random biases, too: zeros would hide their mistakes."""
    model = MLP(Host(), widths, dropout, seed)
    model.store.weights[:] = 0.5 * np.random.default_rng(seed).normal(size=model.store.size)
    return model


def batch(rows: int, features: int, classes: int, seed: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (B, I), t (B,) and keys (B,)."""
    random = np.random.default_rng(seed)
    x_BI = random.normal(size=(rows, features)).astype(np.float32)
    return x_BI, random.integers(classes, size=rows, dtype=np.int32), random.integers(2**32, size=rows, dtype=np.uint32)


def accumulate(model: MLP, x_BI, t_B, keys_B) -> None:
    """Forward and backward of one (micro-)batch."""
    model.workspace.reset()
    z_BK, backward = model.training.forward(x_BI, keys_B)
    backward(model.loss_gradient(z_BK, t_B, model.store.tail), lambda parameters: None)
    model.store.accumulating = True


def gradients(model: MLP) -> list[np.ndarray]:
    """In the order of weights()."""
    parameters = model.store.parameters
    return [parameters[f"{kind}{number}"].gradient for number in range(model.depth) for kind in "Wb"]


def masks(model: MLP, keys_B, rate: float) -> list[np.ndarray]:
    ws = Workspace(Host())
    return [
        F.dropout(ws, np.ones((len(keys_B), width), np.float32), keys_B, layer, rate)
        for layer, width in enumerate(model.widths[1:-1])
    ]


class TestGradient:
    @given(
        st.lists(st.integers(1, 9), min_size=0, max_size=3),
        st.integers(1, 12),
        st.integers(1, 6),
        st.integers(0, 9),
        st.sampled_from([0.0, 0.4]),
        st.integers(0, 1000),
    )
    def test_is_that_of_the_reference(self, hidden, features, classes, rows, dropout, seed):
        model = network((features, *hidden, classes), dropout, seed)
        x_BI, t_B, keys_B = batch(rows, features, classes, seed)
        reference = Reference(model.weights())
        loss, correct, expected = reference.gradient(x_BI, t_B, masks(model, keys_B, dropout) if dropout else ())
        accumulate(model, x_BI, t_B, keys_B)
        tail = model.store.tail
        assert tail[LOSS] == pytest.approx(loss, rel=1e-5, abs=1e-5)
        assert (tail[CORRECT], tail[COUNT], tail[STOP]) == (correct, 0, 0)
        for ours, theirs in zip(gradients(model), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)

    def test_is_that_of_finite_differences(self):
        """In float32, for every weight except where the step takes some unit over its kink."""
        model, h = network((6, 8, 5, 4)), 2.0**-7
        x_BI, t_B, keys_B = batch(10, 6, 4)
        accumulate(model, x_BI, t_B, keys_B)
        ours = model.store.gradients.copy()
        checked = 0
        for place, gradient in enumerate(ours):
            losses, patterns = [], []
            for step in (h, -h):
                model.store.weights[place] += step
                losses.append(self.loss(model, x_BI, t_B))
                patterns.append([z_B > 0 for z_B in Reference(model.weights()).activations(x_BI)[1:-1]])
                model.store.weights[place] -= step
            if all(map(np.array_equal, *patterns)):
                checked += 1
                assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(gradient, abs=5e-3)
        assert checked > 0.9 * ours.size
        assert np.abs(ours).max() > 1

    @staticmethod
    def loss(model: MLP, x_BI, t_B) -> float:
        """float32 through the network; the sum over rows in float64, as it would cost the digits that count."""
        tails = np.zeros((len(t_B), 4), np.float32)
        for row, tail in enumerate(tails):
            model.workspace.reset()
            z_BK, _ = model.inference.forward(x_BI[row : row + 1])
            model.loss_gradient(z_BK, t_B[row : row + 1], tail)
        return float(tails[:, LOSS].sum(dtype=np.float64))

    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    @pytest.mark.parametrize("size", [1, 3, 4, 10])
    def test_micro_batches_add_up_to_the_batch(self, size, dropout):
        x_BI, t_B, keys_B = batch(10, 6, 4)
        whole, parts = network((6, 8, 4), dropout), network((6, 8, 4), dropout)
        accumulate(whole, x_BI, t_B, keys_B)
        for start in range(0, 10, size):
            accumulate(parts, *(array[start : start + size] for array in (x_BI, t_B, keys_B)))
        np.testing.assert_allclose(parts.store.merged, whole.store.merged, rtol=1e-5, atol=1e-5)
        assert whole.store.gradients.any()

    def test_a_batch_without_rows_adds_nothing(self):
        model = network((6, 8, 4), 0.3)
        accumulate(model, *batch(0, 6, 4))
        assert not model.store.merged.any()

    @pytest.mark.parametrize("rows", [0, 1, 10])
    def test_nothing_is_left_of_the_step_before(self, rows):
        """A step begins by overwriting the gradients, which nobody has cleared."""
        fresh, used = network((6, 8, 4)), network((6, 8, 4))
        used.store.merged[:] = np.nan
        for model in (fresh, used):
            model.store.zero_grad()
            accumulate(model, *batch(rows, 6, 4))
        np.testing.assert_array_equal(used.store.merged, fresh.store.merged)

    def test_the_same_batch_gives_the_same_bits(self):
        model = network((6, 8, 4), 0.3)
        results = []
        for _ in range(2):
            model.store.zero_grad()
            accumulate(model, *batch(10, 6, 4))
            results.append(model.store.merged.copy())
        np.testing.assert_array_equal(*results)


class TestForms:
    def test_inference_is_the_network_without_dropout_and_shares_the_weights(self):
        model = network((6, 8, 5, 4), 0.5)
        x_BI, _, _ = batch(10, 6, 4)
        for _ in range(2):
            z_BK, _ = model.inference.forward(x_BI)
            np.testing.assert_allclose(z_BK, Reference(model.weights()).activations(x_BI)[-1], rtol=1e-4, atol=1e-5)
            model.store.weights *= 2

    def test_each_hidden_layer_drops_units_of_its_own(self):
        model = network((6, 40, 40, 4), 0.5)
        x_BI, _, keys_B = batch(10, 6, 4)
        z_BK, _ = model.training.forward(x_BI, keys_B)
        own = masks(model, keys_B, 0.5)
        assert (own[0] != own[1]).any()
        np.testing.assert_allclose(z_BK, Reference(model.weights()).activations(x_BI, own)[-1], rtol=1e-4, atol=1e-4)

    def test_weights_come_layer_by_layer_and_the_store_holds_the_last_layer_first(self):
        model = MLP(Host(), (6, 8, 5, 4))
        assert [w.shape for w in model.weights()] == [(6, 8), (8,), (8, 5), (5,), (5, 4), (4,)]
        assert list(model.store.parameters) == ["W2", "b2", "W1", "b1", "W0", "b0"]
        assert model.store.size == sum(w.size for w in model.weights())


class TestFirstWeights:
    @pytest.mark.parametrize(("fan_in", "fan_out"), [(784, 128), (64, 10), (300, 1), (1, 1)])
    def test_are_uniform_within_glorots_bound(self, fan_in, fan_out):
        W_IO = glorot_uniform(fan_in, fan_out, seed=1, number=0)
        bound = np.sqrt(6 / (fan_in + fan_out))
        assert W_IO.shape == (fan_in, fan_out)
        assert W_IO.dtype == np.float32
        assert np.abs(W_IO).max() <= np.float32(bound)
        if W_IO.size > 500:
            deviation = bound / np.sqrt(3)
            assert abs(W_IO.mean()) < 4 * deviation / np.sqrt(W_IO.size)
            assert W_IO.std() == pytest.approx(deviation, rel=0.05)
            assert np.abs(W_IO).max() > 0.99 * bound
            assert np.histogram(W_IO, 10, (-bound, bound))[0] == pytest.approx(W_IO.size / 10, rel=0.5)

    def test_depend_on_the_seed_and_the_layer(self):
        some = [glorot_uniform(8, 8, seed, number) for seed in (0, 1, 2**32 - 1) for number in range(3)]
        for place, W_IO in enumerate(some):
            for other in some[:place]:
                assert not (other == W_IO).any()
        np.testing.assert_array_equal(some[0], glorot_uniform(8, 8, 0, 0))

    def test_are_those_of_the_network(self):
        model = MLP(Host(), (6, 8, 5), seed=11)
        for number, (W_IO, b_O) in enumerate(zip(model.weights()[::2], model.weights()[1::2], strict=True)):
            np.testing.assert_array_equal(W_IO, glorot_uniform(*W_IO.shape, 11, number))
            assert not b_O.any()

    def test_are_those_of_every_earlier_version(self):
        """Runs are repeated from their seed; NumPy promises no such thing of its generators."""
        W_IO = glorot_uniform(3, 2, seed=5, number=1)
        assert W_IO.astype("<f4").tobytes().hex() == "803a4ebfd4ca193fbc0c1c3f9e5d83bd9158543fd7b9db3e"

    def test_a_layer_does_not_depend_on_those_behind_it(self):
        one, other = MLP(Host(), (6, 8, 5)), MLP(Host(), (6, 8, 7, 5))
        np.testing.assert_array_equal(one.weights()[0], other.weights()[0])

    def test_dropout_does_not_change_them(self):
        assert weights_sha256(MLP(Host(), (6, 8, 5)).weights()) == weights_sha256(MLP(Host(), (6, 8, 5), 0.5).weights())


class TestDigest:
    WEIGHTS = (np.array([[1, 2], [3, 4]], np.float32), np.array([5, 6], np.float32), np.array([[7]], np.float32))
    DIGEST = hashlib.sha256(struct.pack("<7f", 1, 2, 3, 4, 5, 6, 7)).hexdigest()

    def test_is_over_the_rows_of_each_array_in_turn(self):
        assert weights_sha256(self.WEIGHTS) == self.DIGEST

    def test_does_not_depend_on_how_the_arrays_lie_in_memory(self):
        assert weights_sha256([w.astype(">f4") for w in self.WEIGHTS]) == self.DIGEST
        assert weights_sha256([np.asfortranarray(w) for w in self.WEIGHTS]) == self.DIGEST
        assert weights_sha256([np.repeat(w, 2, axis=0)[::2] for w in self.WEIGHTS]) == self.DIGEST

    def test_sees_every_bit_and_the_order(self):
        changed = [w.copy() for w in self.WEIGHTS]
        changed[0][1, 1] = np.nextafter(np.float32(4), np.float32(5))
        assert weights_sha256(changed) != self.DIGEST
        assert weights_sha256(self.WEIGHTS[::-1]) != self.DIGEST

    def test_of_a_network_is_that_of_its_weights_layer_by_layer(self):
        model = MLP(Host(), (2, 3, 2), seed=5)
        p = model.store.parameters
        layers = b"".join(p[name].value.tobytes() for name in ("W0", "b0", "W1", "b1"))
        assert weights_sha256(model.weights()) == hashlib.sha256(layers).hexdigest()
