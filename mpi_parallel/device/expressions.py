"""Every kernel as an expression of the array module: the oracle of the compiled kernels, and their stand-in.

The same lines run on NumPy, where no compiler was there at install time, and on CuPy. Letters of the shapes: B rows,
F features, O outputs, K classes, S slots of N elements. All floating arrays are float32 and C-contiguous (of slots each
row is); results go to the arrays named.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device.augmentation import augmented
from mpi_parallel.device.hashing import Keys, combine, permute
from mpi_parallel.device.interface import (
    BEGUN,
    CORRECTION,
    GOOD,
    HELD,
    LOSS_SCALE,
    RATE,
    ROOT,
    SCALE,
    TAKEN,
    Array,
    Augmentation,
    Meet,
    Pace,
    Schedule,
)

SMALLEST_NORMAL = 2.0**-126  # of float32
LARGEST_LOSS_SCALE = 2.0**24
# Bits of the fraction, of which float32 has 23. bfloat16 and TF32 have float32's exponents, float16 has fewer.
FRACTION = {"bfloat16": 7, "float16": 10, "tf32": 10}
SMALLEST_FLOAT16, BEYOND_FLOAT16 = 2.0**-14, 65520.0  # the smallest normal one; from here on they are infinite


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

    def gather_labelled(
        self,
        images_NF: Array,
        labels_N: Array,
        index_B: Array,
        mean: Array,
        inverse_std: Array,
        x_BF: Array,
        t_B: Array,
    ) -> None:
        """Both `gather` and `pick`."""
        self.gather(images_NF, index_B, mean, inverse_std, x_BF)
        self.pick(labels_N, index_B, t_B)

    def gather_augmented(
        self,
        images_NF: Array,
        labels_N: Array,
        index_B: Array,
        keys_B: Array,
        how: Augmentation,
        mean: Array,
        inverse_std: Array,
        x_BF: Array,
        t_B: Array,
    ) -> None:
        """The same of images that are changed before, each by its key."""
        changed_BF = augmented(self.xp, images_NF[index_B], keys_B, how)
        self.gather(changed_BF, self.xp.arange(len(index_B)), mean, inverse_std, x_BF)
        self.pick(labels_N, index_B, t_B)

    def pick(self, labels_N: Array, index_B: Array, t_B: Array) -> None:
        """t = the labels of the rows in index."""
        self.xp.take(labels_N, index_B, out=t_B)

    def permute(self, image: NDArray[np.int64], first: int, n: int, keys: Keys, starts: NDArray[np.int64]) -> None:
        """image (P, C), in the host's memory, of the places from `first` on under the permutations of keys (C,), each
        counted from its start (C,)."""
        image[...] = permute(np.arange(first, first + len(image))[:, None], n, keys) + starts

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

    def sum_slots(self, out: Array, slots_SN: Array) -> None:
        """out = slots[0] + slots[1] + ..., in this order; out may be one of the slots."""
        out[...] = total(slots_SN)

    def squares(self, a: Array, out: Array) -> None:
        """out (1,) float64 becomes the sum of the squares."""
        out[...] = self.xp.dot(a, a)

    def check(self, a: Array, bad: Array) -> None:
        """bad (1,) becomes NaN where not all numbers are finite."""
        bad += (a * 0).sum()

    def deal(self, index_N: Array, keys_N: Array, cursor: Array, index_B: Array, keys_B: Array) -> None:
        """The batch from place `cursor` (1,) int64 of a longer order on, which then stands behind it."""
        first = int(cursor[0])
        index_B[...], keys_B[...] = index_N[first : first + len(index_B)], keys_N[first : first + len(keys_B)]
        cursor += len(index_B)

    def advance(self, pace: Array, tail: Array, squares: Array | None, schedule: Schedule, told: Array) -> None:
        """The pace of the step with this merged tail (nn/store.py) and sum of squared gradients.

        One that is not finite gets the scale NaN, counts as begun but not as taken, and halves the loss's factor; where
        that is not to blame, steps behind it get NaN and count as nothing. `told` (T, tail and pace) float64 is pinned
        memory of the host: the k-th step that is begun leaves tail and pace in its row k mod T.
        """
        loss, count, bad = float(tail[0]), float(tail[2]), float(tail[-1])
        p = [float(pace[k]) for k in range(len(pace))]
        if p[HELD]:
            pace[SCALE] = math.nan
            return
        finite = math.isfinite(loss + bad) and (squares is None or math.isfinite(float(squares[0])))
        mean = 1 / (max(1.0, count) * p[LOSS_SCALE])
        if schedule.clip and squares is not None and finite:
            mean *= min(1.0, schedule.clip / max(math.sqrt(float(squares[0])) * mean, 1e-30))
        rate = rate_of(p[BEGUN], schedule)
        t = p[TAKEN] + finite
        root = math.sqrt(1 - schedule.beta2 ** max(1.0, t))
        good, growing = (p[GOOD] + 1) * finite, schedule.growth > 0
        loss_scale = p[LOSS_SCALE] if finite or not growing else max(1.0, p[LOSS_SCALE] / 2)
        if growing and good == schedule.growth:
            loss_scale, good = min(loss_scale * 2, LARGEST_LOSS_SCALE), 0
        pace[SCALE], pace[RATE], pace[ROOT] = mean if finite else math.nan, rate, root
        pace[CORRECTION] = root / (1 - schedule.beta1 ** max(1.0, t))
        pace[LOSS_SCALE], pace[GOOD], pace[TAKEN], pace[BEGUN] = loss_scale, good, t, p[BEGUN] + 1
        pace[HELD] = not finite and not (growing and math.isfinite(loss) and p[LOSS_SCALE] > 1)
        row = told[int(p[BEGUN]) % len(told)]
        row[: len(tail)], row[len(tail) :] = tail, pace

    def sgd(self, w: Array, g_SN: Array, pace: Pace | Array, l2: float) -> None:
        """w -= alpha (scale g + l2 w), where g is the sum of its slots in their order, as in all update rules."""
        scale, alpha, _, _ = steady(pace)
        if not math.isnan(scale):
            self._sgd(w, g_SN, scale, alpha, l2)

    def _sgd(self, w: Array, g_SN: Array, scale: float, alpha: float, l2: float) -> None:
        w -= (total(g_SN) * scale + l2 * w) * alpha

    def momentum(self, w: Array, v: Array, g_SN: Array, pace: Pace | Array, mu: float, l2: float) -> None:
        """v = mu v + scale g + l2 w; w -= alpha v (Polyak 1964); as alpha is not in v, schedules act at once."""
        scale, alpha, _, _ = steady(pace)
        if not math.isnan(scale):
            self._momentum(w, v, g_SN, scale, alpha, mu, l2)

    def _momentum(self, w: Array, v: Array, g_SN: Array, scale: float, alpha: float, mu: float, l2: float) -> None:
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
        pace: Pace | Array,
        beta1: float,
        beta2: float,
        epsilon: float,
        l2: float,
        decay: float,
    ) -> None:
        """Step t (from 1) of Adam (Kingma and Ba 2015, algorithm 1); `l2` is added to the gradient, `decay` is AdamW's.

        Both bias corrections are moved out of the arrays: m_hat / (sqrt(v_hat) + eps) = c m / (sqrt(v) + eps root).
        """
        scale, alpha, correction, root = steady(pace, beta1, beta2)
        if not math.isnan(scale):
            keep = 1 - alpha * decay
            self._adam(w, m, v, g_SN, scale, alpha * correction, beta1, beta2, epsilon * root, l2, keep)

    def _adam(
        self,
        w: Array,
        m: Array,
        v: Array,
        g_SN: Array,
        scale: float,
        step: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        l2: float,
        keep: float,
    ) -> None:
        """What the rules of Adam's kind share, as mp_adam in kernels/maths.h has it."""
        g = total(g_SN) * scale + l2 * w
        m *= beta1
        m += g * (1 - beta1)
        v *= beta2
        v += g * g * (1 - beta2)
        settle(self.xp, m)
        settle(self.xp, v)
        w *= keep
        w -= m / (self.xp.sqrt(v) + epsilon) * step

    def lamb(
        self,
        r: Array,
        w: Array,
        m: Array,
        v: Array,
        g_SN: Array,
        pace: Pace | Array,
        beta1: float,
        beta2: float,
        epsilon: float,
        decay: float,
    ) -> None:
        """r = m_hat / (sqrt(v_hat) + eps) + decay w, LAMB's direction (You et al. 2020); `trust` takes the step."""
        scale, _, correction, root = steady(pace, beta1, beta2)
        if not math.isnan(scale):  # Adam's step of size 1, upwards from the decay
            self.xp.multiply(w, decay, out=r)
            self._adam(r, m, v, g_SN, scale, -correction, beta1, beta2, epsilon * root, 0.0, 1.0)

    def trust(self, w: Array, r: Array, squares_2: Array, pace: Pace | Array) -> None:
        """w -= alpha |w| / |r| r; the squares of both norms are given, (2,) float64. Where one is 0 the ratio is 1."""
        scale, alpha, _, _ = steady(pace)
        if not math.isnan(scale):
            of_w, of_r = float(squares_2[0]), float(squares_2[1])
            r *= alpha * (math.sqrt(of_w / of_r) if of_w and of_r else 1.0)
            w -= r


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


def steady(pace: Pace | Array, beta1: float = 0.0, beta2: float = 0.0) -> tuple[float, float, float, float]:
    """scale, alpha, and Adam's correction of the step size and root that epsilon has to carry then."""
    if not isinstance(pace, Pace):
        return float(pace[SCALE]), float(pace[RATE]), float(pace[CORRECTION]), float(pace[ROOT])
    root = math.sqrt(1 - beta2**pace.t)
    return pace.scale, pace.alpha, root / (1 - beta1**pace.t), root


def rate_of(step: float, schedule: Schedule) -> float:
    """The learning rate of a step, as nn/learning_rate.py tells."""
    if step < schedule.warmup:
        return schedule.base * (step + 1) / schedule.warmup
    if not schedule.cosine:
        return schedule.base
    progress = (step - schedule.warmup) / max(1, schedule.total - schedule.warmup)
    return schedule.base * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
