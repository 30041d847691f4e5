"""Every kernel as an expression of the array module: the oracle of the compiled kernels, and their stand-in.

The same lines run on NumPy, where no compiler was there at install time, and on CuPy. Letters of the shapes: B rows,
F features, O outputs, K classes, S slots of N elements. All floating arrays are float32 and C-contiguous (of slots each
row is); results go to the arrays named.
"""

from __future__ import annotations

import math
from types import ModuleType

from mpi_parallel.device.hashing import combine
from mpi_parallel.device.interface import Array, Meet

SMALLEST_NORMAL = 2.0**-126  # of float32


class Expressions:
    """The kernels of `device.Kernels`, by the operations of an array module."""

    meet: Meet | None = None  # array operations promise no order between processes

    def __init__(self, xp: ModuleType) -> None:
        self.xp = xp
        self.name = f"{xp.__name__} expressions"

    def gather(self, images_NF: Array, index_B: Array, mean: Array, inverse_std: Array, x_BF: Array) -> None:
        """x = (raw - mean) / std of the rows in index; images in the file's type, mean and 1/std (1,) or (F,)."""
        self.xp.subtract(images_NF[index_B], mean, out=x_BF)
        x_BF *= inverse_std

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

    def add_product(self, a_BI: Array, b_BO: Array, c_IO: Array) -> None:
        """c += a^T b; the rows of each are contiguous."""
        c_IO += self.xp.matmul(a_BI.T, b_BO)

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

    def sum_slots(self, out: Array, slots_SN: Array) -> None:
        """out = slots[0] + slots[1] + ..., in this order; out may be one of the slots."""
        out[...] = total(slots_SN)

    def sgd(self, w: Array, g_SN: Array, scale: float, alpha: float, l2: float) -> None:
        """w -= alpha (scale g + l2 w), where g is the sum of its slots in their order, as in all update rules."""
        w -= (total(g_SN) * scale + l2 * w) * alpha

    def momentum(self, w: Array, v: Array, g_SN: Array, scale: float, alpha: float, mu: float, l2: float) -> None:
        """v = mu v + scale g + l2 w; w -= alpha v (Polyak 1964); as alpha is not in v, schedules act at once."""
        v *= mu
        v += total(g_SN) * scale + l2 * w
        settle(self.xp, v)
        w -= v * alpha

    def adam(
        self,
        w: Array,
        m: Array,
        v: Array,
        g_SN: Array,
        scale: float,
        alpha: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        t: int,
        l2: float,
        decay: float,
    ) -> None:
        """Step t (from 1) of Adam (Kingma and Ba 2015, algorithm 1); `l2` is added to the gradient, `decay` is AdamW's.

        Both bias corrections are moved out of the arrays: m_hat / (sqrt(v_hat) + eps) = c m / (sqrt(v) + eps root).
        """
        step, root = bias_corrections(alpha, beta1, beta2, t)
        g = total(g_SN) * scale + l2 * w
        m *= beta1
        m += g * (1 - beta1)
        v *= beta2
        v += g * g * (1 - beta2)
        settle(self.xp, m)
        settle(self.xp, v)
        w *= 1 - alpha * decay
        w -= m / (self.xp.sqrt(v) + epsilon * root) * step


def total(slots_SN: Array) -> Array:
    """The sum of the slots in their order; of one slot it is that slot itself."""
    sum_N: Array = slots_SN[0]
    for slot in range(1, len(slots_SN)):
        sum_N = sum_N + slots_SN[slot]
    return sum_N


def settle(xp: ModuleType, a: Array) -> None:
    """Make subnormal numbers zero (see mp_settled in kernels/maths.h)."""
    a *= xp.abs(a) >= SMALLEST_NORMAL


def threshold(rate: float) -> int:
    """A random uint32 is below it with probability `rate` < 1."""
    return int(rate * 2**32)


def bias_corrections(alpha: float, beta1: float, beta2: float, t: int) -> tuple[float, float]:
    """Adam's step size with both corrections in it, and the root that epsilon has to carry then."""
    root = math.sqrt(1 - beta2**t)
    return alpha * root / (1 - beta1**t), root
