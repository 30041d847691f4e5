"""Every kernel as an expression of the array module: the oracle of the compiled kernels, and their stand-in.

The same lines run on NumPy, where no compiler was there at install time, and on CuPy. Letters of the shapes: B rows,
F features, O outputs, K classes, S slots of N elements. All floating arrays are float32 and C-contiguous (of slots each
row is); results go to the arrays named.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.hashing import combine, combine_int
from mpi_parallel.device.interface import Array, Meet, SmallNetwork, Work
from mpi_parallel.device.row_expressions import RowExpressions
from mpi_parallel.device.rule_expressions import RuleExpressions

# Bits of the fraction, of which float32 has 23. bfloat16 and TF32 have float32's exponents, float16 has fewer.
FRACTION = {"bfloat16": 7, "float16": 10, "tf32": 10}
SMALLEST_FLOAT16, BEYOND_FLOAT16 = 2.0**-14, 65520.0  # the smallest normal one; from here on they are infinite


class Expressions(RowExpressions, RuleExpressions):
    """The kernels of `device.Kernels`, by the operations of an array module; those of layers stand here."""

    file_types: Container[Any] | None = None
    recorded: Callable[[Work], Work] | None = None
    meet: Meet | None = None  # array operations promise no order between processes

    def __init__(self, xp: ModuleType) -> None:
        self.xp = xp
        self.name = f"{xp.__name__} expressions"

    def bias(self, y_BO: Array, b_O: Array, relu: bool) -> None:
        """y += b in every row, then y = max(y, 0) where relu is asked for."""
        y_BO += b_O
        if relu:
            self.xp.maximum(y_BO, 0, out=y_BO)

    def relu_gradient(self, dy: Array, y: Array) -> None:
        """dy becomes dz: dy where relu's output y was positive, else 0."""
        dy *= y > 0

    def column_sums(self, a_BO: Array, sums_O: Array, add: bool) -> None:
        """The sum over the rows, added to what is there or in its place."""
        if add:
            sums_O += a_BO.sum(axis=0)
        else:
            self.xp.sum(a_BO, axis=0, out=sums_O)

    def mask_bytes(self, width: int) -> int:
        """What a row of so many units takes of a mask that `linear` makes for `input_gradient`; 0: none is made."""
        return 0

    def linear(
        self, x_BI: Array, W_IO: Array, b_O: Array | None, y_BO: Array, relu: bool, mask: Array | None = None
    ) -> None:
        """y = x W + b, then max(y, 0) where relu is asked for; `mask` then keeps where it is positive."""
        self.multiply(x_BI, W_IO, y_BO)
        if b_O is not None:
            self.bias(y_BO, b_O, relu)

    def input_gradient(
        self, dy_BO: Array, W_IO: Array, dx_BI: Array, x_BI: Array | None = None, mask: Array | None = None
    ) -> None:
        """dx = dy W^T; where x, the output of a relu with this mask, is given, the gradient of that relu's input."""
        self.multiply(dy_BO, W_IO.T, dx_BI)
        if x_BI is not None:
            self.relu_gradient(dx_BI, x_BI)

    def weight_gradient(self, x_BI: Array, dy_BO: Array, dW_IO: Array, db_O: Array | None, add: bool) -> None:
        """dW = x^T dy and db = the sum of dy over the rows, or added to what is there; no db where None is given."""
        self.multiply(x_BI.T, dy_BO, dW_IO, add)
        if db_O is not None:
            self.column_sums(dy_BO, db_O, add)

    def multiply(self, a: Array, b: Array, out: Array, add: bool = False) -> None:
        """out = a b, or added to what is there; a and b may be transposed."""
        if add:
            out += self.xp.matmul(a, b)
        else:
            self.xp.matmul(a, b, out=out)

    def narrow(self, a: Array, out: Array, precision: str) -> None:
        """out = a rounded to the nearest number of a narrower format (see FRACTION); out may be a.

        The arrays are float32 here; devices that have arrays of the format may write into one of these.
        """
        lost = 23 - FRACTION[precision]
        bits = a.view("uint32")
        rounded = (bits + ((bits >> lost) & 1) + (2 ** (lost - 1) - 1)) & (2**32 - 2**lost)
        narrow = self.xp.where(a == a, rounded.view("float32"), a)  # NaN stays
        if precision == "float16":  # below 2^-14 in steps of 2^-24, beyond 65504 infinite
            size = self.xp.abs(a)
            sign = self.xp.where(a < 0, np.float32(-1), np.float32(1))
            small = ((size + np.float32(0.75)) - np.float32(0.75)) * sign
            narrow = self.xp.where(size < SMALLEST_FLOAT16, small, narrow)
            narrow = self.xp.where(size >= BEYOND_FLOAT16, sign * np.float32(np.inf), narrow)
        out[...] = narrow

    def pack(self, a: NDArray[np.float32], out: NDArray[np.uint16], precision: str) -> None:
        """The 16 bits of each number in bfloat16 or float16, for messages: in the host's memory. NaN stays NaN."""
        if precision == "float16":
            with np.errstate(over="ignore"):
                out[...] = a.astype(np.float16).view(np.uint16)
            return
        bits = a.view(np.uint32)
        rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
        out[...] = np.where(a == a, rounded, bits >> 16 | 0x40)

    def unpack(self, a: NDArray[np.uint16], out: NDArray[np.float32], precision: str) -> None:
        """The numbers with these bits."""
        wide = a.view(np.float16) if precision == "float16" else (a.astype(np.uint32) << 16).view(np.float32)
        out[...] = wide

    def dropout(self, x_BU: Array, keys_B: Array, layer: int, rate: float, y_BU: Array, first: int = 0) -> None:
        """y = x times 0 with probability `rate`, else 1 / (1 - rate) (inverted dropout, Srivastava et al. 2014).

        Unit u of the row with key k (uint32) is dropped by a hash of (k, layer, u) alone, so on every layout alike; the
        columns of x are the units from `first` on.
        """
        units_U = self.xp.arange(first, first + x_BU.shape[1], dtype="uint32")
        bits_BU = combine(keys_B[:, None] ^ layer, units_U[None, :])
        self.xp.multiply(x_BU, bits_BU >= threshold(rate), out=y_BU)
        y_BU *= 1 / (1 - rate)

    def cross_entropy(self, z_BK: Array, t_B: Array, sums: Array) -> None:
        """z becomes dz = softmax(z) - onehot(t); adds the rows' losses to sums[0], the number correct to sums[1].

        The loss of a row is log(sum_k exp z_k) - z_t. The row's largest logit is taken off first, so exp cannot
        overflow. A row is correct when its first largest logit is its target's.
        """
        rows_B = self.xp.arange(len(t_B))
        sums[1] += (z_BK.argmax(axis=1) == t_B).sum()
        z_BK -= z_BK.max(axis=1, keepdims=True)
        of_target_B = z_BK[rows_B, t_B]
        self.xp.exp(z_BK, out=z_BK)
        total_B1 = z_BK.sum(axis=1, keepdims=True)
        z_BK /= total_B1
        z_BK[rows_B, t_B] -= 1
        sums[0] += (self.xp.log(total_B1[:, 0]) - of_target_B).sum()

    def small_numbers(self, network: SmallNetwork, rows: int) -> int:
        """float32 numbers that `small_pass` computes in; 0 where so many rows of this network go layer by layer."""
        return 0

    def small_pass(
        self, network: SmallNetwork, x_BF: Array, keys_B: Array, t_B: Array, weights: Array, merged: Array, room: Array
    ) -> None:
        """All of a batch, forward and backward: `merged` gets the gradients and the tail that nn/store.py tells of."""
        gradients, tail = merged[: len(weights)], merged[len(weights) :]
        shapes = list(zip(network.starts, pairwise(network.widths), strict=True))
        inputs, tail[:] = [x_BF], 0
        for layer, (starts, shape) in enumerate(shapes):
            inputs.append(self.xp.empty((len(x_BF), shape[1]), np.float32))
            hidden = layer < len(shapes) - 1
            self.linear(inputs[-2], *_layer(weights, starts, shape), inputs[-1], relu=hidden)
            if hidden:
                self.dropout(inputs[-1], keys_B, combine_int(layer), network.dropout, inputs[-1])
        dz_BO = inputs.pop()
        self.cross_entropy(dz_BO, t_B, tail)
        tail[2] = len(x_BF)
        for starts, shape in reversed(shapes):
            x_BI = inputs.pop()
            self.weight_gradient(x_BI, dz_BO, *_layer(gradients, starts, shape), add=False)
            if inputs:
                dx_BI = self.xp.empty(x_BI.shape, np.float32)
                self.input_gradient(dz_BO, _layer(weights, starts, shape)[0], dx_BI, x_BI)
                dx_BI *= 1 / (1 - network.dropout)
                dz_BO = dx_BI
        self.check(gradients, tail[-1:])


def _layer(flat: Array, starts: tuple[int, int], shape: tuple[int, int]) -> tuple[Array, Array]:
    """W and b of a layer, or their gradients."""
    of_W, of_b = starts
    return flat[of_W : of_W + shape[0] * shape[1]].reshape(shape), flat[of_b : of_b + shape[1]]


def threshold(rate: float) -> int:
    """A random uint32 is below it with probability `rate` < 1."""
    return int(rate * 2**32)
