"""Each operation beside its gradient: matrix products, and the device's kernels for the rest.

Letters of the shapes: B rows of the batch, I inputs, O outputs. `dx` stands for dL/dx, where the loss L is summed over
rows; the division by the number of rows happens once, after the ranks' sums are merged. All floating arrays are
C-contiguous; results go to fresh arrays of the workspace unless an operation says that it is done in place.

What goes into a matrix product is of the workspace's format (precision.py), what comes out is summed in float32. So
activations behind a relu, their gradients and the `factor` of a weight are operands; logits, weights and the weights'
gradients are float32.
"""

from __future__ import annotations

import math

import numpy as np

from mpi_parallel.device import Array
from mpi_parallel.device.hashing import combine_int
from mpi_parallel.device.workspace import Workspace

LOSS_DIGITS = 2**20  # multiples of its inverse add up exactly in float64, in any order, below 2^33


def linear(ws: Workspace, x_BI: Array, W_IO: Array, b_O: Array, relu: bool = False, mask: Array | None = None) -> Array:
    """y = x W + b, (B, O), the logits, or the operand max(x W + b, 0), of which a mask tells where it is positive."""
    shape = x_BI.shape[0], W_IO.shape[1]
    y_BO = ws.operand(shape) if relu else ws.empty(shape)
    if mask is None:
        ws.kernels.linear(x_BI, W_IO, b_O, y_BO, relu)
    else:
        ws.kernels.linear(x_BI, W_IO, b_O, y_BO, relu, mask)
    return ws.narrowed(y_BO) if relu else y_BO


def product(ws: Workspace, x_BI: Array, W_IO: Array) -> Array:
    """x W, (B, O) float32."""
    y_BO = ws.empty((x_BI.shape[0], W_IO.shape[1]))
    ws.kernels.linear(x_BI, W_IO, None, y_BO, False)
    return y_BO


def linear_input_gradient(ws: Workspace, dy_BO: Array, W_IO: Array, partial: bool = False) -> Array:
    """dx = dy W^T, (B, I), an operand; or where it is part of a sum float32, to be `narrowed` once that is complete."""
    shape = dy_BO.shape[0], W_IO.shape[0]
    dx_BI = ws.empty(shape) if partial else ws.operand(shape)
    ws.kernels.input_gradient(dy_BO, W_IO, dx_BI)
    return dx_BI if partial else ws.narrowed(dx_BI)


def relu_mask(ws: Workspace, rows: int, width: int) -> Array | None:
    """Room for the mask of a relu's output, where the device keeps one for `linear_relu_gradient`."""
    nbytes = ws.kernels.mask_bytes(width)
    return ws.empty((rows, nbytes), np.uint8) if nbytes else None


def linear_relu_gradient(ws: Workspace, dy_BO: Array, W_IO: Array, x_BI: Array, mask: Array) -> Array:
    """dx = dy W^T where x, the output of a relu with this mask, is positive: an operand, the gradient before the relu.

    A dropout between relu and x does no harm: what it dropped has no gradient, and it says so itself.
    """
    dx_BI = ws.operand(x_BI.shape)
    ws.kernels.input_gradient(dy_BO, W_IO, dx_BI, x_BI, mask)
    return dx_BI


def linear_weight_gradient(
    ws: Workspace, x_BI: Array, dy_BO: Array, dW_IO: Array, db_O: Array | None, add: bool
) -> None:
    """dW = x^T dy and db = sum of dy over the rows, or added to what is there; no db where the bias is elsewhere."""
    ws.kernels.weight_gradient(x_BI, dy_BO, dW_IO, db_O, add)


def relu(ws: Workspace, z: Array) -> Array:
    """z, in place, becomes max(z, 0), as an operand."""
    ws.xp.maximum(z, 0, out=z)
    return ws.narrowed(z)


def relu_gradient(ws: Workspace, dy: Array, y: Array) -> Array:
    """dy, in place, becomes dy where relu's output y is positive, else 0."""
    ws.kernels.relu_gradient(dy, y)
    return dy


def dropout(ws: Workspace, x_BU: Array, keys_B: Array, layer: int, rate: float, first: int = 0) -> Array:
    """x times a random mask that depends on the rows' keys (uint32), the layer and the unit alone; its own gradient.

    The columns of x are the layer's units from `first` on.
    """
    y_BU = ws.operand(x_BU.shape)
    ws.kernels.dropout(x_BU, keys_B, combine_int(layer), rate, y_BU, first)
    return ws.narrowed(y_BU)


def softmax_cross_entropy(ws: Workspace, z_BK: Array, t_B: Array, tail: Array) -> Array:
    """z, in place, becomes dz = softmax(z) - onehot(t); adds the summed loss and the number correct to tail[0:2]."""
    ws.kernels.cross_entropy(z_BK, t_B, tail)
    return z_BK


def scaled(ws: Workspace, dz_BK: Array, factor: float | Array | None) -> Array:
    """dz, in place, times the factor of the loss where there is one, as an operand."""
    if factor is not None:
        ws.xp.multiply(dz_BK, factor, out=dz_BK)
    return ws.narrowed(dz_BK)


def round_finite(loss: float) -> float:
    """A loss to the nearest multiple of 1 / LOSS_DIGITS; what is not finite stays so."""
    return round(loss * LOSS_DIGITS) / LOSS_DIGITS if math.isfinite(loss) else loss
