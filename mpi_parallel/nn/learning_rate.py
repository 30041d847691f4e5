"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, base: float, schedule: str, warmup: int, total: int) -> float:
    """The rate of step `step` (from 0) of `total`: a linear warm-up to `base`, then constant or a cosine to zero.

    The cosine is SGDR's without restarts (Loshchilov and Hutter 2017).
    """
    if step < warmup:
        return base * (step + 1) / warmup
    if schedule == "constant":
        return base
    progress = (step - warmup) / max(1, total - warmup)
    return base * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
