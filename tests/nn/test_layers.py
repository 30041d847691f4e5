"""Layers: what their closures keep, and when gradients are complete."""

import numpy as np
import pytest

from mpi_parallel.device import Host
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.nn import functional as F
from mpi_parallel.nn.layers import Dropout, Linear, Sequential
from mpi_parallel.nn.store import ParameterStore

KEYS_B = np.array([5, 6, 7, 8], np.uint32)


class Network:
    """Linear 3-5, relu, dropout, linear 5-2, with its store."""

    def __init__(self) -> None:
        self.ws = Workspace(Host())
        shapes = [("W1", (5, 2)), ("b1", (2,)), ("W0", (3, 5)), ("b0", (5,))]
        self.store = ParameterStore(Host(), shapes)
        self.store.weights[:] = np.random.default_rng(1).normal(size=self.store.size)
        self.first = Linear(self.ws, self.store, 0, relu=True)
        self.last = Linear(self.ws, self.store, 1)
        self.layers = Sequential([self.first, Dropout(self.ws, 0.25, 0), self.last])


def rows(seed: int, width: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, width)).astype(np.float32)


def test_linear_adds_to_its_gradients_and_gives_its_inputs():
    layer, h_BI, dy_BO = Network().last, rows(2, 5), rows(3, 2)
    _, backward = layer.forward(h_BI)
    np.testing.assert_allclose(backward(dy_BO), dy_BO @ layer.W.value.T, rtol=1e-6)
    np.testing.assert_allclose(layer.W.gradient, h_BI.T @ dy_BO, rtol=1e-5)
    np.testing.assert_allclose(layer.b.gradient, dy_BO.sum(axis=0), rtol=1e-5)


def test_the_first_layer_does_not_compute_the_gradient_of_the_images(monkeypatch):
    monkeypatch.setattr(F, "linear_input_gradient", lambda *arguments: pytest.fail("computed for nobody"))
    layer, x_BI, dy_BO = Network().first, rows(4), rows(5, 5)
    y_BO, backward = layer.forward(x_BI)
    backward(dy_BO.copy())
    np.testing.assert_allclose(layer.W.gradient, x_BI.T @ (dy_BO * (y_BO > 0)), rtol=1e-5)


def test_dropout_masks_value_and_gradient_alike():
    ws = Workspace(Host())
    x_BU, dy_BU = rows(6, 50), rows(7, 50)
    y_BU, backward = Dropout(ws, 0.25, 3).forward(x_BU, KEYS_B)
    mask_BU = F.dropout(Workspace(Host()), np.ones((4, 50), np.float32), KEYS_B, 3, 0.25)
    np.testing.assert_array_equal(y_BU, x_BU * mask_BU)
    np.testing.assert_array_equal(backward(dy_BU), dy_BU * mask_BU)
    assert 0 < (mask_BU == 0).sum() < mask_BU.size


def test_dropout_must_know_its_rows():
    with pytest.raises(AssertionError, match="which rows"):
        Dropout(Workspace(Host()), 0.25, 0).forward(rows(1))


def test_sequential_lists_the_parameters_of_its_layers():
    network = Network()
    assert [parameter.name for parameter in network.layers.parameters] == ["W0", "b0", "W1", "b1"]


def test_ready_hears_of_each_layer_once_when_its_gradients_are_complete():
    network = Network()
    heard = []

    def ready(parameters):
        heard.extend((parameter.name, parameter.gradient.copy()) for parameter in parameters)

    z_BK, backward = network.layers.forward(rows(8), KEYS_B)
    assert z_BK.shape == (4, 2)
    backward(rows(9, 2), ready)
    assert [name for name, _ in heard] == ["W1", "b1", "W0", "b0"] == list(network.store.parameters)
    for name, gradient in heard:
        assert gradient.any()
        np.testing.assert_array_equal(gradient, network.store.parameters[name].gradient)


def test_closures_of_several_batches_are_independent():
    """A pipeline goes forward with some micro-batches before it goes back with the first."""
    one_by_one, interleaved = Network(), Network()
    batches = [(rows(10), rows(11, 2)), (rows(12), rows(13, 2))]
    for x_BI, dz_BK in batches:
        one_by_one.layers.forward(x_BI, KEYS_B)[1](dz_BK, lambda parameters: None)
        one_by_one.store.accumulating = True
    closures = [interleaved.layers.forward(x_BI, KEYS_B)[1] for x_BI, _ in batches]
    for backward, (_, dz_BK) in zip(closures, batches, strict=True):
        backward(dz_BK, lambda parameters: None)
        interleaved.store.accumulating = True
    np.testing.assert_array_equal(interleaved.store.gradients, one_by_one.store.gradients)
    assert one_by_one.store.gradients.any()
