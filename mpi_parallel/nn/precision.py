"""Mixed precision: narrow numbers in matrix products, float32 everywhere else (Micikevicius et al. 2018).

    float32    products of float32 numbers
    tf32       of their first 10 bits: what a tensor core makes of float32
    bfloat16   7 bits of fraction, float32's range
    float16    10 bits of fraction, a range from 6e-8 to 65504: the loss is scaled to keep gradients within

Weights, their gradients, sums, logits, the loss and the optimizer's state are float32 in all of them. What a hidden
layer gives has 16 bits in the latter two, and so has the bias that is added to it, as cublasLt adds no other. A device
that has no products of a format rounds what goes into them and multiplies in float32, with the same result but for the
order of the additions: slower than float32, and there to see what a format does to a network.
"""

from __future__ import annotations

import math

from mpi_parallel.device import Array
from mpi_parallel.device.rule_expressions import LARGEST_LOSS_SCALE

FORMATS = ("float32", "tf32", "bfloat16", "float16")
HALVES = ("bfloat16", "float16")  # of 16 bits
# Gradients here are summed over rows, of which each gives the logits at most 1: float16 holds 16 such of this scale.
FIRST, SMALLEST = 2.0**12, 1.0
PATIENCE = 2000  # steps that go well before a larger scale is tried


class LossScale:
    """The factor that the loss carries through backward, a power of two: it rounds nothing. 1 where none is due.

    A step whose gradients overflow is not taken, and the scale halves; after PATIENCE good ones it doubles. As all
    ranks agree on whether a step is taken, all have the same scale.
    """

    def __init__(self, precision: str) -> None:
        self.dynamic = precision == "float16"
        self.value = FIRST if self.dynamic else 1.0
        self.good = 0  # steps since the scale last changed
        self.skipped = 0  # steps not taken
        self.on_device: Array | None = None  # (1,) the value where the device keeps it (training/captured.py)

    @property
    def factor(self) -> float | Array | None:
        """What the gradient of the loss is multiplied with, if with anything."""
        if not self.dynamic:
            return None
        return self.value if self.on_device is None else self.on_device

    def update(self, finite: bool, loss: float) -> bool:
        """Learn how a step went; whether too large a scale explains that it was not taken, and the next one may be.

        A loss is computed without the scale: if that is not finite, no scale will mend it.
        """
        if finite:
            self._grow()
            return False
        excuse = self.dynamic and math.isfinite(loss) and self.value > SMALLEST
        if self.dynamic:
            self.value = max(SMALLEST, self.value / 2)
        self.good = 0
        self.skipped += excuse
        return excuse

    def state(self) -> dict[str, float]:
        """What a checkpoint has to keep."""
        return {"value": self.value, "good": self.good, "skipped": self.skipped}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from a kept state."""
        self.value, self.good, self.skipped = float(state["value"]), int(state["good"]), int(state["skipped"])

    def _grow(self) -> None:
        self.good += 1
        if self.dynamic and self.good >= PATIENCE:
            self.value, self.good = min(2 * self.value, LARGEST_LOSS_SCALE), 0
