"""The flat store: parameters are views that tile it."""

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device import Host
from mpi_parallel.nn.store import CORRECT, COUNT, LOSS, STOP, TAIL, ParameterStore

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
    store.tail[[LOSS, CORRECT, COUNT, STOP]] = [2, 3, 4, 5]
    assert store.merged.tolist() == [1] * 9 + [2, 3, 4, 5]
    assert TAIL == 4


def test_everything_is_float32_and_contiguous():
    store = store_of([(2, 3), (3,)])
    for array in (store.weights, store.merged):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


def test_zero_grad_clears_gradients_and_tail_and_leaves_the_weights():
    store = store_of([(2, 3), (3,)])
    store.weights[:], store.merged[:] = 1, 2
    store.zero_grad()
    assert not store.merged.any()
    assert (store.weights == 1).all()
