"""The update rules against the float64 reference, in blocks and in owned slices, and at the ends of float32."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device import Host
from mpi_parallel.device.expressions import Expressions
from mpi_parallel.nn.optimizers import RULES, Optimizer
from mpi_parallel.nn.store import ParameterStore
from tests import reference
from tests.once import once

pytestmark = once

SIZE = 1000
STEPS = 25
ELEMENTWISE = [name for name in RULES if name != "lamb"]  # LAMB looks at whole layers: its owners have to talk


def make(name: str, weight_decay: float = 0.0, size: int = SIZE) -> Optimizer:
    store = ParameterStore(Host(), [("w", (size,))])
    store.weights[:] = np.random.default_rng(0).normal(size=size)
    return RULES[name](store, weight_decay)


def gradient(step: int, size: int = SIZE) -> np.ndarray:
    """From 1e-12 to 1e3 along the array: on both sides of Adam's epsilon."""
    scale = np.logspace(-12, 3, size)
    return (scale * np.random.default_rng([1, step]).normal(size=size)).astype(np.float32)


def rate(step: int) -> float:
    """As a schedule has it: another one at every step."""
    return 1e-3 * (1 + step % 4)


def run(optimizer: Optimizer, owned: slice, steps: int = STEPS) -> np.ndarray:
    size = optimizer.store.size
    for step in range(steps):
        optimizer.store.gradients[:] = gradient(step, size)
        optimizer.step(owned, rate(step))
    return optimizer.store.weights


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_that_of_the_reference(name, weight_decay):
    optimizer = make(name, weight_decay)
    weights = [optimizer.store.weights.astype(float)]
    rule = reference.RULES[name](rate, weight_decay)
    moves = np.zeros(SIZE)
    for step in range(STEPS):
        before = weights[0]
        weights = rule.step(weights, [gradient(step).astype(float)])
        moves += np.abs(weights[0] - before)
    ours = run(optimizer, slice(0, SIZE))
    # Each step rounds the weight, and the update itself to some digits of its size.
    np.testing.assert_array_less(
        np.abs(ours - weights[0]), STEPS * np.spacing(np.abs(ours) + 0.01, dtype=np.float32) + 1e-5 * moves
    )
    assert moves.min() > 0


def test_all_rules_differ():
    results = [run(make(name, 0.1), slice(0, SIZE)) for name in RULES]
    for place, result in enumerate(results):
        for other in results[:place]:
            assert np.abs(result - other).max() > 1e-3


@pytest.mark.parametrize("name", RULES)
def test_scaling_the_gradient_is_scaling_what_is_read_of_it(name):
    scaled, plain = make(name, 0.1), make(name, 0.1)
    for step in range(3):
        scaled.store.gradients[:] = gradient(step)
        plain.store.gradients[:] = gradient(step) * np.float32(0.25)
        scaled.step(slice(0, SIZE), 0.01, 0.25)
        plain.step(slice(0, SIZE), 0.01)
    np.testing.assert_array_equal(scaled.store.weights, plain.store.weights)


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(st.lists(st.integers(0, 50), max_size=4).map(sorted))
def test_owned_slices_together_are_the_whole(name, cuts):
    """As ranks that own a share each; some own nothing."""
    optimizer = make(name, 0.1, 50)
    whole = run(optimizer, slice(0, 50), 3)
    first = make(name, 0.1, 50).store.weights
    for start, stop in zip([0, *cuts], [*cuts, 50], strict=True):
        owner = make(name, 0.1, 50)
        share = run(owner, slice(start, stop), 3)
        np.testing.assert_array_equal(share[start:stop], whole[start:stop])
        np.testing.assert_array_equal(np.delete(share, np.s_[start:stop]), np.delete(first, np.s_[start:stop]))
        for state, of_whole in zip(owner.state.values(), optimizer.state.values(), strict=True):
            np.testing.assert_array_equal(state[start:stop], of_whole[start:stop])
            assert not np.delete(state, np.s_[start:stop]).any()


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adams_first_step_is_the_learning_rate_whatever_the_gradients_size(name):
    optimizer = make(name)
    before = optimizer.store.weights.copy()
    g = np.logspace(-6, 15, SIZE).astype(np.float32) * np.where(np.arange(SIZE) % 2, 1, -1)
    optimizer.store.gradients[:] = g
    optimizer.step(slice(0, SIZE), 0.25)
    np.testing.assert_allclose(before - optimizer.store.weights, 0.25 * np.sign(g), rtol=0.011, atol=1e-6)


def test_adamw_shrinks_weights_that_have_no_gradient_and_the_others_take_the_decay_for_one():
    shrunk = {}
    for name in RULES:
        optimizer = make(name, 0.5)
        before = optimizer.store.weights.copy()
        for _ in range(3):
            optimizer.store.gradients[:] = 0
            optimizer.step(slice(0, SIZE), 0.01)
        shrunk[name] = optimizer.store.weights / before
    np.testing.assert_allclose(shrunk["adamw"], (1 - 0.01 * 0.5) ** 3, rtol=1e-5)
    np.testing.assert_allclose(shrunk["sgd"], (1 - 0.01 * 0.5) ** 3, rtol=1e-5)
    far = np.abs(make("adam").store.weights) > 0.1
    assert np.ptp(shrunk["adam"][far]) > 0.1  # to plain Adam a large weight's decay is as one of any size


@pytest.mark.parametrize("name", RULES)
def test_without_gradient_and_decay_nothing_moves(name):
    optimizer = make(name)
    before = optimizer.store.weights.copy()
    for _ in range(3):
        optimizer.store.gradients[:] = 0
        optimizer.step(slice(0, SIZE), 1.0)
    np.testing.assert_array_equal(optimizer.store.weights, before)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e18, 3e38])
def test_adam_stays_finite_at_the_ends_of_float32(name, size):
    optimizer = make(name)
    with np.errstate(over="ignore"):  # g * g may be infinite; train_step refuses such a step
        for _ in range(3):
            optimizer.store.gradients[:] = size
            optimizer.step(slice(0, SIZE), 1e-3)
    assert np.isfinite(optimizer.store.weights).all()


def test_lamb_takes_a_step_of_the_size_of_each_layer():
    store = ParameterStore(Host(), [("W", (3, 4)), ("b", (4,)), ("empty", (2,))])
    store.weights[:12], store.weights[12:16], store.gradients[:] = 2, 0.5, np.arange(-9, 9) * 7
    before = store.weights.copy()
    RULES["lamb"](store).step(slice(0, store.size), 0.01)
    for parameter in store.parameters.values():
        moved, size = (np.linalg.norm(a[parameter.span]) for a in (store.weights - before, before))
        if size:
            np.testing.assert_allclose(moved, 0.01 * size, rtol=1e-4)
        else:  # weights of zero give no measure: the plain step
            np.testing.assert_allclose(np.abs(store.weights[parameter.span]), 0.01, rtol=1e-4)


def test_owners_of_lamb_sum_their_norms():
    """Two owners in turn, the second told what the first found, and the other way round."""
    whole = make("lamb", 0.1, 50)
    whole.store.gradients[:] = gradient(0, 50)
    found = []
    for owned in (slice(0, 20), slice(20, 50)):
        owner = make("lamb", 0.1, 50)
        owner.store.gradients[:] = gradient(0, 50)
        owner.step(owned, 0.01, 1.0, lambda squares: found.append(squares.copy()))
    whole.step(slice(0, 50), 0.01)
    for owned in (slice(0, 20), slice(20, 50)):
        owner = make("lamb", 0.1, 50)
        owner.store.gradients[:] = gradient(0, 50)
        owner.step(owned, 0.01, 1.0, lambda squares: np.copyto(squares, sum(found)))
        np.testing.assert_allclose(owner.store.weights[owned], whole.store.weights[owned], rtol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_a_rank_that_owns_nothing_counts_the_step(name):
    """Adam's bias correction must be that of the other ranks when the shares change, as after a restart."""
    optimizer = make(name)
    optimizer.step(slice(5, 5), 1.0)
    assert optimizer.steps == 1
    assert not any(state.any() for state in optimizer.state.values())


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("name", "state", "decay"), [("momentum", "v", 0.9), ("adam", "m", 0.9), ("adam", "v", 0.999)])
def test_what_only_decays_ends_at_zero(name, state, decay, compiled):
    """As in a unit that has died: a step among subnormal numbers takes ten times as long, and they would never go."""
    optimizer = make(name)
    if not compiled:
        optimizer.kernels = Expressions(np)
    smallest = np.finfo(np.float32).smallest_normal
    optimizer.state[state][:] = np.linspace(1, 20, SIZE) * smallest
    optimizer.store.gradients[:] = 0
    for step in range(1, 40):
        optimizer.step(slice(0, SIZE), 1e-3)
        left = np.linspace(1, 20, SIZE) * smallest * decay**step
        expected = np.where(left >= smallest, left, 0)
        assert (np.abs(optimizer.state[state] - expected) <= 1e-5 * left + (np.abs(left / smallest - 1) < 1e-5)).all()
    assert (decay > 0.99) or not optimizer.state[state].any()


@pytest.mark.parametrize(("name", "arrays"), [("sgd", ()), ("momentum", ("v",)), ("adam", ("m", "v"))])
def test_state_is_as_long_as_the_store(name, arrays):
    optimizer = make(name)
    assert tuple(optimizer.state) == arrays
    assert all(state.shape == (SIZE,) and state.dtype == np.float32 for state in optimizer.state.values())
