"""All weights in one array, all gradients in another: what is merged, owned, clipped and saved are slices of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np

from mpi_parallel.device import Array, Device
from mpi_parallel.nn.precision import LossScale

# Behind the gradients travel the batch's sums, so that one collective merges everything.
LOSS, CORRECT, COUNT, STOP, SAVE, BAD = range(6)  # BAD: 0, or NaN where a gradient is not finite
TAIL = 6
FLOAT = 4  # bytes


@dataclass(eq=False)
class Parameter:
    """A trainable array: views of its value and its gradient (float32, one shape), and where the store keeps them.

    `factor` is what matrix products take of it: the value itself, or the value rounded to the store's format.
    """

    name: str
    value: Array
    gradient: Array
    factor: Array
    span: slice


class ParameterStore:
    """A flat float32 array of weights, and one of gradients and tail, in the order in which backward completes them.

    They begin at multiples of the device's `apart` bytes; what lies between two is zero, and updates leave it so.
    """

    def __init__(
        self, device: Device, shapes: Sequence[tuple[str, tuple[int, ...]]], precision: str = "float32"
    ) -> None:
        """`shapes` names every parameter, those whose gradient is ready first in front; `precision` is the factors'."""
        xp = device.xp
        self.device, self.precision = device, precision
        self.loss_scale = LossScale(precision)
        unit = device.apart // FLOAT
        starts = list(accumulate((-(-prod(shape) // unit) * unit for _, shape in shapes), initial=0))
        self.size = starts[-1]
        self.accumulating = False  # whether backward adds to the gradients that are there
        self.parameters: dict[str, Parameter] = {}
        weights, merged = xp.zeros(self.size, np.float32), xp.zeros(self.size + TAIL, np.float32)
        self.factors: Array | None = None
        if device.rounds(precision):
            self.factors = xp.zeros(self.size, device.storage(precision))
        for (name, shape), start in zip(shapes, starts, strict=False):
            span = slice(start, start + prod(shape))
            held = weights, merged, weights if self.factors is None else self.factors
            value, gradient, factor = (array[span].reshape(shape) for array in held)
            self.parameters[name] = Parameter(name, value, gradient, factor, span)
        self._hold(weights, merged)

    def move(self, weights: Array, merged: Array) -> None:
        """Live in these arrays from now on, (size,) and (size + TAIL,) float32: what they hold becomes the contents.

        The parameters stay the same objects with other views, so layers and optimizers follow.
        """
        for parameter in self.parameters.values():
            shape = parameter.value.shape
            parameter.value = weights[parameter.span].reshape(shape)
            parameter.gradient = merged[parameter.span].reshape(shape)
            if self.factors is None:
                parameter.factor = parameter.value
        self._hold(weights, merged)

    def _hold(self, weights: Array, merged: Array) -> None:
        self.weights: Array = weights
        self.merged: Array = merged
        self.gradients: Array = merged[: self.size]
        self.tail: Array = merged[self.size :]
        self.terms: Array = self.gradients[None]  # (S, size): rows whose sum in their order is the gradient to apply

    def narrow(self) -> None:
        """Bring the factors up to date with the weights: before the first product, whoever has changed them."""
        if self.factors is not None:
            self.device.kernels.narrow(self.weights, self.factors, self.precision)

    def zero_grad(self, cleared: bool = False) -> None:
        """Start a step: no counts, and the first backward overwrites the gradients, which spares clearing them.

        `cleared`: there are no counts already.
        """
        if not cleared:
            self.tail.fill(0)
        self.accumulating = False

    def flag_bad(self) -> None:
        """Make tail[BAD] NaN if not all of this rank's gradients are finite, without waiting for the device."""
        self.device.kernels.check(self.gradients, self.tail[BAD : BAD + 1])

    def finish(self, rows: int) -> None:
        """The gradients are those of so many rows more, and complete: count them, and `flag_bad`."""
        self.device.kernels.finish(self.gradients, self.tail[BAD : BAD + 1], self.tail[COUNT : COUNT + 1], rows)
