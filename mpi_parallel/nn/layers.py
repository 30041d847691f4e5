"""Layers: `y, backward = layer.forward(x, keys)`, then `dx = backward(dy)`, which also adds to the gradients.

The closure is the only home of what backward needs of forward. `keys` (B,) uint32 names the rows; only dropout looks
at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mpi_parallel.device import Array
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.nn import functional as F
from mpi_parallel.nn.store import Parameter

Backward = Callable[[Array], Array]
Ready = Callable[[Sequence[Parameter]], None]


class Layer(Protocol):
    """What a network is made of."""

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Those whose gradients its backward completes."""

    def forward(self, x: Array, keys: Array | None = None) -> tuple[Array, Backward]:
        """The output, and the function from its gradient to the input's."""


class Linear:
    """y = x W + b. The first layer of a network sets `first`: nobody needs the gradient of the images."""

    def __init__(self, ws: Workspace, W_IO: Parameter, b_O: Parameter, first: bool = False) -> None:
        self.ws, self.W, self.b, self.first = ws, W_IO, b_O, first
        self.parameters = (W_IO, b_O)

    def forward(self, x_BI: Array, keys: Array | None = None) -> tuple[Array, Backward]:
        def backward(dy_BO: Array) -> Array:
            F.add_linear_weight_gradient(self.ws, x_BI, dy_BO, self.W.gradient, self.b.gradient)
            return dy_BO if self.first else F.linear_input_gradient(self.ws, dy_BO, self.W.value)

        return F.linear(self.ws, x_BI, self.W.value, self.b.value), backward


class ReLU:
    """y = max(x, 0)."""

    parameters: tuple[Parameter, ...] = ()

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws

    def forward(self, x: Array, keys: Array | None = None) -> tuple[Array, Backward]:
        y = F.relu(self.ws, x)
        return y, lambda dy: F.relu_gradient(self.ws, dy, y)


class Dropout:
    """y = x times a random mask that depends on the row, the layer and the unit alone."""

    parameters: tuple[Parameter, ...] = ()

    def __init__(self, ws: Workspace, rate: float, number: int) -> None:
        self.ws, self.rate, self.number = ws, rate, number

    def forward(self, x: Array, keys: Array | None = None) -> tuple[Array, Backward]:
        assert keys is not None, "dropout must be told which rows these are"
        mask = F.dropout_mask(self.ws, keys, x.shape[1], self.number, self.rate)

        def masked(values: Array) -> Array:
            product = self.ws.empty(values.shape)
            self.ws.xp.multiply(values, mask, out=product)
            return product

        return masked(x), masked


class Sequential:
    """Layers in a row."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.parameters = [parameter for layer in layers for parameter in layer.parameters]

    def forward(self, x: Array, keys: Array | None = None) -> tuple[Array, Callable[[Array, Ready], None]]:
        """The output, and a backward that also tells `ready` which gradients have just been completed."""
        tape = []
        for layer in self.layers:
            x, layer_backward = layer.forward(x, keys)
            tape.append((layer.parameters, layer_backward))

        def backward(dy: Array, ready: Ready) -> None:
            for parameters, layer_backward in reversed(tape):
                dy = layer_backward(dy)
                if parameters:
                    ready(parameters)

        return x, backward
