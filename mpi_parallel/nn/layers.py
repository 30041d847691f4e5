"""Layers: `y, backward = layer.forward(x, keys)`, then `dx = backward(dy)`, which also adds to the gradients.

The closure is the only home of what backward needs of forward. `keys` (B,) uint32 names the rows; only dropout looks
at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from mpi_parallel.device import Array
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.nn import functional as F
from mpi_parallel.nn.precision import HALVES
from mpi_parallel.nn.store import Parameter, ParameterStore

Backward = Callable[[Array], Array]
Ready = Callable[[Sequence[Parameter]], None]
See = Callable[[int, NDArray[Any], NDArray[Any]], None]  # number of the first row, logits (B, K), labels (B,)


class Layer(Protocol):
    """What a network is made of."""

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Those whose gradients its backward completes."""

    def forward(self, x: Array, keys: Array | None = None) -> tuple[Array, Backward]:
        """The output, and the function from its gradient to the input's."""


class Linear:
    """y = x W + b, or relu of it. The first layer gives no gradient of its input: nobody needs that of the images."""

    def __init__(self, ws: Workspace, store: ParameterStore, number: int, relu: bool = False) -> None:
        """Layer `number` of the store's parameters W0, b0, W1, b1, ...; number 0 is the first."""
        self.ws, self.store, self.relu, self.first = ws, store, relu, number == 0
        self.W, self.b = store.parameters[f"W{number}"], store.parameters[f"b{number}"]
        self.parameters = (self.W, self.b)
        self.mask: Array | None = None  # of the last output, for the layer above
        self.below: Linear | None = None  # whose relu's gradient this layer gives at once with that of its input
        self.is_below = False
        self.weight_gradient: Callable[[Array, Array], None] = self._weight_gradient  # a pipeline takes it later

    def stand_on(self, below: Linear) -> None:
        """Take over the gradient of the relu below, on a device that does that within the product."""
        if self.ws.kernels.mask_bytes(1):
            self.below, below.is_below = below, True

    @property
    def bias(self) -> Array:
        """What is added: float32 to logits, else of the format of the output."""
        return self.b.factor if self.relu and self.ws.precision in HALVES else self.b.value

    def forward(self, x_BI: Array, keys: Array | None = None) -> tuple[Array, Backward]:
        self.mask = F.relu_mask(self.ws, len(x_BI), self.W.value.shape[1]) if self.is_below else None
        y_BO = F.linear(self.ws, x_BI, self.W.factor, self.bias, self.relu, self.mask)
        mask_below = self.below.mask if self.below else None

        def backward(dy_BO: Array) -> Array:
            if self.relu and not self.is_below:
                dy_BO = F.relu_gradient(self.ws, dy_BO, y_BO)
            self.weight_gradient(x_BI, dy_BO)
            if self.first:
                return dy_BO
            if mask_below is not None:
                return F.linear_relu_gradient(self.ws, dy_BO, self.W.factor, x_BI, mask_below)
            return F.linear_input_gradient(self.ws, dy_BO, self.W.factor)

        return y_BO, backward

    def _weight_gradient(self, x_BI: Array, dz_BO: Array) -> None:
        """To the gradients of W and b, from the layer's input and the gradient of x W + b."""
        add = self.store.accumulating
        F.linear_weight_gradient(self.ws, x_BI, dz_BO, self.W.gradient, self.b.gradient, add)


class Dropout:
    """y = x times a random mask that depends on the row, the layer and the unit alone."""

    parameters: tuple[Parameter, ...] = ()

    def __init__(self, ws: Workspace, rate: float, number: int, first: int = 0) -> None:
        """Behind layer `number`, of whose units x has those from `first` on."""
        self.ws, self.rate, self.number, self.first = ws, rate, number, first

    def forward(self, x: Array, keys: Array | None = None) -> tuple[Array, Backward]:
        assert keys is not None, "dropout must be told which rows these are"

        def masked(values: Array) -> Array:  # the mask is made anew on the way back: cheaper than to keep it
            return F.dropout(self.ws, values, keys, self.number, self.rate, self.first)

        return masked(x), masked


class Sequential:
    """Layers in a row."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.parameters = [parameter for layer in layers for parameter in layer.parameters]

    def forward(self, x: Array, keys: Array | None = None) -> tuple[Array, Callable[[Array, Ready], Array]]:
        """The output, and a backward to the input that also tells `ready` which gradients have just been completed."""
        tape = []
        for layer in self.layers:
            x, layer_backward = layer.forward(x, keys)
            tape.append((layer.parameters, layer_backward))

        def backward(dy: Array, ready: Ready) -> Array:
            for parameters, layer_backward in reversed(tape):
                dy = layer_backward(dy)
                if parameters:
                    ready(parameters)
            return dy

        return x, backward
