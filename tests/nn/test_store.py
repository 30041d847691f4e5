"""The flat store: parameters are views that tile it."""

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device import Host
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.nn.store import BAD, CORRECT, COUNT, LOSS, SAVE, STOP, TAIL, ParameterStore
from tests.once import once

pytestmark = once

SHAPES = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6)


def store_of(shapes) -> ParameterStore:
    return ParameterStore(Host(), [(f"p{number}", shape) for number, shape in enumerate(shapes)])


@given(SHAPES)
def test_spans_tile_the_store_in_the_given_order(shapes):
    store = store_of(shapes)
    end = 0
    for parameter, shape in zip(store.parameters.values(), shapes, strict=True):
        assert (parameter.span.start, parameter.span.stop) == (end, end + prod(shape))
        assert parameter.value.shape == parameter.gradient.shape == shape
        end = parameter.span.stop
    assert store.size == end == store.weights.size == store.gradients.size
    assert list(store.parameters) == [parameter.name for parameter in store.parameters.values()]


@given(SHAPES)
def test_parameters_are_views_of_the_store(shapes):
    store = store_of(shapes)
    for number, parameter in enumerate(store.parameters.values()):
        parameter.value[...] = number + 1
        parameter.gradient[...] = -number - 1
    expected = np.repeat(np.arange(len(shapes)) + 1, [prod(shape) for shape in shapes])
    np.testing.assert_array_equal(store.weights, expected)
    np.testing.assert_array_equal(store.gradients, -expected)
    assert not store.tail.any()


def test_the_tail_lies_behind_the_gradients_in_one_array():
    store = store_of([(2, 3), (3,)])
    store.gradients[:] = 1
    store.tail[[LOSS, CORRECT, COUNT, STOP, SAVE, BAD]] = [2, 3, 4, 5, 6, 7]
    assert store.merged.tolist() == [1] * 9 + [2, 3, 4, 5, 6, 7]
    assert TAIL == 6


def test_everything_is_float32_and_contiguous():
    store = store_of([(2, 3), (3,)])
    for array in (store.weights, store.merged):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


def test_zero_grad_clears_the_tail_and_lets_the_first_backward_overwrite():
    store = store_of([(2, 3), (3,)])
    store.weights[:], store.merged[:], store.accumulating = 1, 2, True
    store.zero_grad()
    assert not store.tail.any()
    assert not store.accumulating
    assert (store.weights == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_flagged(bad):
    store = store_of([(2, 3), (3,)])
    store.merged[:] = 1
    store.tail[BAD] = 0
    store.flag_bad()
    assert store.tail[BAD] == 0
    store.parameters["p1"].gradient[1] = bad
    with np.errstate(invalid="ignore"):
        store.flag_bad()
    assert np.isnan(store.tail[BAD])


def test_parameters_begin_where_a_device_loads_fast():
    """What lies between them is zero, and stays so."""
    device = Host()
    device.apart = 64
    store = ParameterStore(device, [("W1", (3, 5)), ("b1", (5,)), ("W0", (4, 4)), ("b0", (4,))])
    assert [parameter.span.start for parameter in store.parameters.values()] == [0, 16, 32, 48]
    assert store.size == 64
    rule = RULES["adamw"](store, weight_decay=0.1)
    for parameter in store.parameters.values():
        parameter.value[...] = parameter.gradient[...] = 1
    rule.step(slice(0, store.size), 0.1)
    used = np.zeros(store.size, bool)
    for parameter in store.parameters.values():
        used[parameter.span] = True
    assert (store.weights[used] < 1).all()
    assert not store.weights[~used].any()
