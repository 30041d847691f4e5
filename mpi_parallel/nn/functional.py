"""Each operation beside its gradient, pure: results go to fresh arrays of the workspace.

Letters of the shapes: B rows of the batch, I inputs, O outputs, K classes. `dx` stands for dL/dx, where the loss L is
summed over rows; the division by the number of rows happens once, after the ranks' sums are merged.
All floating arrays are float32 and C-contiguous.
"""

from __future__ import annotations

from mpi_parallel.device import Array
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.nn import hashing


def linear(ws: Workspace, x_BI: Array, W_IO: Array, b_O: Array) -> Array:
    """y = x W + b, (B, O)."""
    y_BO = ws.empty((x_BI.shape[0], W_IO.shape[1]))
    ws.xp.matmul(x_BI, W_IO, out=y_BO)
    y_BO += b_O
    return y_BO


def linear_input_gradient(ws: Workspace, dy_BO: Array, W_IO: Array) -> Array:
    """dx = dy W^T, (B, I)."""
    dx_BI = ws.empty((dy_BO.shape[0], W_IO.shape[0]))
    ws.xp.matmul(dy_BO, W_IO.T, out=dx_BI)
    return dx_BI


def add_linear_weight_gradient(ws: Workspace, x_BI: Array, dy_BO: Array, dW_IO: Array, db_O: Array) -> None:
    """dW += x^T dy and db += sum of dy over the rows."""
    product_IO = ws.empty(dW_IO.shape)
    ws.xp.matmul(x_BI.T, dy_BO, out=product_IO)
    dW_IO += product_IO
    column_sums_O = ws.empty(db_O.shape)
    ws.xp.sum(dy_BO, axis=0, out=column_sums_O)
    db_O += column_sums_O


def relu(ws: Workspace, x: Array) -> Array:
    """y = max(x, 0), any shape."""
    y = ws.empty(x.shape)
    ws.xp.maximum(x, 0, out=y)
    return y


def relu_gradient(ws: Workspace, dy: Array, y: Array) -> Array:
    """dx = dy where y > 0, else 0; y is relu's output."""
    dx, active = ws.empty(y.shape), ws.empty(y.shape, bool)
    ws.xp.greater(y, 0, out=active)
    ws.xp.multiply(dy, active, out=dx)
    return dx


def dropout_mask(ws: Workspace, keys_B: Array, width: int, layer: int, rate: float) -> Array:
    """(B, width) factors: 0 with probability `rate`, else 1 / (1 - rate) (inverted dropout, Srivastava et al. 2014).

    A factor is a pure function of the row's key (uint32), the layer and the unit: the same on every layout of ranks.
    """
    units = ws.xp.arange(width, dtype=ws.xp.uint32)
    bits_BU = hashing.combine(keys_B[:, None] ^ hashing.combine_int(layer), units[None, :])
    mask_BU = ws.empty(bits_BU.shape)
    ws.xp.greater_equal(bits_BU, ws.xp.uint32(rate * 2**32), out=mask_BU, casting="unsafe")
    mask_BU *= 1 / (1 - rate)
    return mask_BU


def softmax_cross_entropy(ws: Workspace, z_BK: Array, t_B: Array, classes_K: Array, tail: Array) -> Array:
    """Add the batch's summed loss and its number correct to tail[0:2], return dz (B, K).

    L = sum over rows of log(sum_k exp z_k) - z_t with integer targets t; dz = softmax(z) - onehot(t). The row maximum
    is
    taken off first, so that exp cannot overflow. A row counts as correct when its first largest logit is its target's.
    """
    xp, (B, K) = ws.xp, z_BK.shape
    hit_BK, guess_B = ws.empty((B, K), bool), ws.empty((B,), xp.int64)
    xp.equal(t_B[:, None], classes_K, out=hit_BK)
    xp.argmax(z_BK, axis=1, out=guess_B)
    correct_B = ws.empty((B,), bool)
    xp.equal(guess_B, t_B, out=correct_B)

    dz_BK, row_B1, loss_B1 = ws.empty((B, K)), ws.empty((B, 1)), ws.empty((B, 1))
    xp.max(z_BK, axis=1, keepdims=True, out=row_B1)
    xp.subtract(z_BK, row_B1, out=z_BK)
    xp.multiply(z_BK, hit_BK, out=dz_BK)
    xp.sum(dz_BK, axis=1, keepdims=True, out=loss_B1)  # z_t, less the row's maximum
    xp.exp(z_BK, out=dz_BK)
    xp.sum(dz_BK, axis=1, keepdims=True, out=row_B1)
    dz_BK /= row_B1
    dz_BK -= hit_BK
    xp.log(row_B1, out=row_B1)
    xp.subtract(row_B1, loss_B1, out=loss_B1)
    tail[0] += loss_B1.sum()
    tail[1] += correct_B.sum()
    return dz_BK
