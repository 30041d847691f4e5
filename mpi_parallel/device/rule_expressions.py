"""Merging sums, the pace of steps and the update rules as expressions of the array module; see expressions.py."""

from __future__ import annotations

import math
from types import ModuleType

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
    Pace,
    Schedule,
)

SMALLEST_NORMAL = 2.0**-126  # of float32
LARGEST_LOSS_SCALE = 2.0**24


class RuleExpressions:
    """What becomes of gradients."""

    xp: ModuleType
    rules_narrow = False

    def sum_slots(self, out: Array, slots_SN: Array) -> None:
        """out = slots[0] + slots[1] + ..., in this order; out may be one of the slots."""
        out[...] = total(slots_SN)

    def squares(self, a: Array, out: Array) -> None:
        """out (1,) float64 becomes the sum of the squares."""
        out[...] = self.xp.dot(a, a)

    def check(self, a: Array, bad: Array) -> None:
        """bad (1,) becomes NaN where not all numbers are finite."""
        bad += (a * 0).sum()

    def finish(self, gradients: Array, bad: Array, count: Array, rows: int) -> None:
        """`check`, and count (1,) becomes greater by so many rows."""
        self.check(gradients, bad)
        count += rows  # in place: a device has one launch for that and two for an element

    def advance(self, pace: Array, tail: Array, squares: Array | None, schedule: Schedule, told: Array) -> None:
        """The pace of the step with this merged tail (nn/store.py) and squared gradients, to be added up in order.

        One that is not finite gets the scale NaN, counts as begun but not as taken, and halves the loss's factor; where
        that is not to blame, steps behind it get NaN and count as nothing. `told` (T, tail and pace) float64 is pinned
        memory of the host: the k-th step that is begun leaves tail and pace in its row k mod T.
        """
        loss, count, bad = float(tail[0]), float(tail[2]), float(tail[-1])
        p = [float(pace[k]) for k in range(len(pace))]
        if p[HELD]:
            pace[SCALE] = math.nan
            return
        square = 0.0
        if squares is not None:
            for k in range(len(squares)):
                square += float(squares[k])
        finite = math.isfinite(loss + bad + square)
        mean = 1 / (max(1.0, count) * p[LOSS_SCALE])
        if schedule.clip and squares is not None and finite:
            mean *= min(1.0, schedule.clip / max(math.sqrt(square) * mean, 1e-30))
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

    def sgd(self, w: Array, g_SN: Array, pace: Pace | Array, l2: float, factors: Array | None = None) -> None:
        """w -= alpha (scale g + l2 w), where g is the sum of its slots in their order, as in all update rules.

        `factors` are for kernels whose rules narrow.
        """
        assert factors is None
        scale, alpha, _, _ = steady(pace)
        if not math.isnan(scale):
            self._sgd(w, g_SN, scale, alpha, l2)

    def _sgd(self, w: Array, g_SN: Array, scale: float, alpha: float, l2: float) -> None:
        w -= (total(g_SN) * scale + l2 * w) * alpha

    def momentum(
        self, w: Array, v: Array, g_SN: Array, pace: Pace | Array, mu: float, l2: float, factors: Array | None = None
    ) -> None:
        """v = mu v + scale g + l2 w; w -= alpha v (Polyak 1964); as alpha is not in v, schedules act at once."""
        assert factors is None
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
        factors: Array | None = None,
    ) -> None:
        """Step t (from 1) of Adam (Kingma and Ba 2015, algorithm 1); `l2` is added to the gradient, `decay` is AdamW's.

        Both bias corrections are moved out of the arrays: m_hat / (sqrt(v_hat) + eps) = c m / (sqrt(v) + eps root).
        """
        assert factors is None
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
