"""The same network once more, in float64 and without a trick: what `verify` holds gradients against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def mean_gradient(weights: Sequence[Values], x_BI: Values, t_B: NDArray[np.int64]) -> list[Values]:
    """Gradients of the mean cross-entropy for weights W0 (in, out), b0, W1, ...; in their order.

    Dense relu layers, then one Dense layer of logits; x are standardised images, t classes.
    """
    depth, inputs = len(weights) // 2, [x_BI]
    for layer in range(depth):
        z = inputs[-1] @ weights[2 * layer] + weights[2 * layer + 1]
        inputs.append(np.maximum(z, 0) if layer < depth - 1 else z)
    logits = inputs.pop()

    dz = np.exp(logits - logits.max(axis=1, keepdims=True))
    dz /= dz.sum(axis=1, keepdims=True)
    dz[np.arange(len(t_B)), t_B] -= 1  # softmax(z) - onehot(t)
    gradients: list[Values] = []
    for layer in reversed(range(depth)):
        gradients[:0] = inputs[layer].T @ dz / len(t_B), dz.sum(axis=0) / len(t_B)
        dz = (dz @ weights[2 * layer].T) * (inputs[layer] > 0)
    return gradients
