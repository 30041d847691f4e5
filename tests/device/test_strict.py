"""The strict device is as strict as it says."""

import operator

import numpy as np
import pytest

from tests.device.recording import Recording
from tests.device.strict import Strict, StrictArray
from tests.once import once

pytestmark = once


@pytest.fixture
def device() -> Strict:
    return Strict()


@pytest.fixture
def array(device) -> StrictArray:
    return device.to_device(np.arange(6, dtype=np.float32).reshape(2, 3))


HOST = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    "mistake",
    [
        np.asarray,
        np.array,
        np.sum,
        np.exp,
        memoryview,
        lambda array: np.add(array, array),
        lambda array: np.matmul(array, HOST),
        lambda array: np.concatenate([array, array]),
        lambda array: np.add(HOST, HOST, out=array),
        lambda array: operator.setitem(HOST.copy(), slice(None), array),
        lambda array: operator.setitem(array, slice(None), HOST),
        lambda array: array[np.array([0])],
        lambda array: Strict().xp.multiply(array, HOST),
        lambda array: Strict().xp.sum(HOST, axis=0),
        lambda array: Strict().xp.sum(array, axis=0, out=HOST[0]),
        lambda array: Strict().xp.take(array, array, mode="clip"),
        lambda array: array.sum(where=True),
    ],
)
def test_refuses_to_be_mixed_with_host_arrays_or_taken_for_one(array, mistake):
    with pytest.raises(TypeError):
        mistake(array)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "iadd", "isub", "imul", "gt", "eq", "xor"])
def test_operators_refuse_host_arrays_on_either_side(array, name):
    apply = getattr(operator, name)
    with pytest.raises(TypeError):
        apply(array, HOST)
    with pytest.raises(TypeError):
        apply(HOST.copy(), array)


def test_has_only_what_is_in_use(device):
    with pytest.raises(AttributeError):
        _ = device.xp.einsum


def test_crosses_over_as_a_copy_and_counts(device):
    host = HOST.copy()
    array = device.to_device(host)
    array *= 3
    back = device.to_host(array)
    back += 1
    assert (host == 1).all()
    assert device.to_host(array).tolist() == [[3] * 3] * 2
    device.refill(array, back)
    assert device.to_host(array).tolist() == [[4] * 3] * 2
    assert device.crossings == {"to_device": 1, "to_host": 3, "refill": 1}


def test_computes_as_numpy_does(device, array):
    xp, host = device.xp, device.to_host(array)
    for ours, theirs in (
        (2 - array * np.float32(3), 2 - host * np.float32(3)),
        (xp.matmul(array, array.T), host @ host.T),
        (array.max(axis=1, keepdims=True), host.max(axis=1, keepdims=True)),
        (array[:, None, 1:] > 2, host[:, None, 1:] > 2),
        (array[device.to_device(np.array([1, 0, 1]))], host[[1, 0, 1]]),
        (array.view(np.uint32) ^ 5, host.view(np.uint32) ^ 5),
    ):
        assert isinstance(ours, StrictArray)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(device.to_host(ours), theirs)


def test_single_elements_are_views(device, array):
    array[1, 2] += array.sum()
    element = array[0, 0]
    element += 7
    assert (element.shape, float(element), float(array[0, 0]), float(array[1, 2])) == ((), 7, 7, 20)


def test_elements_that_are_looked_up_are_those_behind_the_work_before(monkeypatch):
    device = Recording(monkeypatch, late=True)
    array, places = device.to_device(np.zeros((2, 3))), device.to_device(np.array([1, 0]))
    array += 1
    found = array[places, places]
    array += 1
    assert device.to_host(found).tolist() == [1, 1]
