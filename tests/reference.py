"""A plain float64 network to compare with, written from the formulas; it shares nothing with the package.

    reference = Reference(model.weights())
    loss, correct, gradients = reference.gradient(x, t)
    reference.train([(x, t), ...], Adam(1e-3))
    reference.weights

Weights and gradients are lists in the order W0, b0, W1, b1, ...; W is (in, out). Losses and gradients are summed over
the rows of a batch; training divides them by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Reference:
    """Dense relu layers, then one Dense layer of logits, with softmax cross-entropy.

    `masks` are the factors of dropout, an array (rows, width) for each hidden layer.
    """

    def __init__(self, weights: Sequence[NDArray[Any]]) -> None:
        self.weights: list[Array] = [np.array(w, np.float64) for w in weights]

    @classmethod
    def random(cls, widths: Sequence[int], seed: int) -> Reference:
        """A network of these widths (features, hidden..., classes), its weights and biases normal."""
        random = np.random.default_rng(seed)
        return cls([random.normal(size=shape) for i, o in pairwise(widths) for shape in ((i, o), (o,))])

    @property
    def depth(self) -> int:
        return len(self.weights) // 2

    def activations(self, x: NDArray[Any], masks: Sequence[NDArray[Any]] = ()) -> list[Array]:
        """What goes into each layer, and the logits behind them."""
        inputs = [np.asarray(x, np.float64)]
        for layer in range(self.depth):
            z = inputs[-1] @ self.weights[2 * layer] + self.weights[2 * layer + 1]
            if layer < self.depth - 1:
                z = np.where(z > 0, z, 0)
                if masks:
                    z = z * masks[layer]
            inputs.append(z)
        return inputs

    def loss(self, x: NDArray[Any], t: NDArray[Any], masks: Sequence[NDArray[Any]] = ()) -> float:
        """Minus the logarithm of the probability of the target, summed over the rows."""
        return -float(np.sum(log_softmax(self.activations(x, masks)[-1])[np.arange(len(t)), t]))

    def gradient(
        self, x: NDArray[Any], t: NDArray[Any], masks: Sequence[NDArray[Any]] = ()
    ) -> tuple[float, int, list[Array]]:
        """Summed loss, number of rows whose largest logit is the target's, and the gradients of the summed loss."""
        *inputs, z = self.activations(x, masks)
        gradients: list[Array] = [np.empty(0)] * len(self.weights)
        d = np.exp(log_softmax(z))
        d[np.arange(len(t)), t] -= 1
        for layer in reversed(range(self.depth)):
            gradients[2 * layer] = inputs[layer].T @ d
            gradients[2 * layer + 1] = d.sum(axis=0)
            d = d @ self.weights[2 * layer].T
            if layer:
                # What came in is relu's output times the mask: where it is 0, one of the two was.
                d = np.where(inputs[layer] > 0, d, 0)
                if masks:
                    d = d * masks[layer - 1]
        return self.loss(x, t, masks), int(np.sum(z.argmax(axis=1) == t)), gradients

    def train(self, batches: Iterable[Sequence[Any]], rule: Rule, clip_norm: float = 0.0) -> list[tuple[float, int]]:
        """A step for each batch (x, t) or (x, t, masks); the summed loss and number correct of each."""
        told = []
        for x, t, *masks in batches:
            loss, correct, sums = self.gradient(x, t, *masks)
            told.append((loss, correct))
            gradients = [g / len(t) for g in sums]
            norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
            if clip_norm and norm > clip_norm:
                gradients = [g * clip_norm / norm for g in gradients]
            self.weights = rule.step(self.weights, gradients)
        return told


def log_softmax(z: Array) -> Array:
    """log(exp z_k / sum_j exp z_j), row by row."""
    shifted = z - z.max(axis=1, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))


class Rule:
    """An update rule as its paper has it; `alpha` is the learning rate, a number or a function of the step from 0."""

    def __init__(self, alpha: float | Callable[[int], float], weight_decay: float = 0.0) -> None:
        self.alpha = alpha if callable(alpha) else lambda step: alpha
        self.weight_decay = weight_decay
        self.t = 0
        self.state: dict[int, dict[str, Any]] = {}

    def step(self, weights: Sequence[Array], gradients: Sequence[Array]) -> list[Array]:
        """The weights after one more step."""
        alpha = self.alpha(self.t)
        self.t += 1
        return [
            self.update(w, g, alpha, self.state.setdefault(number, {"m": 0.0, "v": 0.0}))
            for number, (w, g) in enumerate(zip(weights, gradients, strict=True))
        ]

    def update(self, w: Array, g: Array, alpha: float, state: dict[str, Any]) -> Array:
        raise NotImplementedError


class SGD(Rule):
    """Gradient descent on L + weight_decay/2 |w|^2."""

    def update(self, w: Array, g: Array, alpha: float, state: dict[str, Any]) -> Array:
        return w - alpha * (g + self.weight_decay * w)


class Momentum(Rule):
    """The heavy ball: v <- 0.9 v + g, w <- w - alpha v."""

    def update(self, w: Array, g: Array, alpha: float, state: dict[str, Any]) -> Array:
        state["v"] = 0.9 * state["v"] + (g + self.weight_decay * w)
        return w - alpha * state["v"]


class Adam(Rule):
    """Kingma and Ba 2015, algorithm 1, of L + weight_decay/2 |w|^2."""

    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def update(self, w: Array, g: Array, alpha: float, state: dict[str, Any]) -> Array:
        return w - alpha * self.direction(g + self.weight_decay * w, state)

    def direction(self, g: Array, state: dict[str, Any]) -> Array:
        """m_hat / (sqrt(v_hat) + epsilon)."""
        state["m"] = self.beta1 * state["m"] + (1 - self.beta1) * g
        state["v"] = self.beta2 * state["v"] + (1 - self.beta2) * g**2
        m_hat = state["m"] / (1 - self.beta1**self.t)
        v_hat = state["v"] / (1 - self.beta2**self.t)
        return m_hat / (np.sqrt(v_hat) + self.epsilon)


class LAMB(Adam):
    """r = Adam's direction + decay w; w -= alpha |w| / |r| r, each array by itself (You et al. 2020)."""

    epsilon = 1e-6

    def update(self, w: Array, g: Array, alpha: float, state: dict[str, Any]) -> Array:
        r = self.direction(g, state) + self.weight_decay * w
        sizes = np.linalg.norm(w), np.linalg.norm(r)
        return w - alpha * (sizes[0] / sizes[1] if all(sizes) else 1.0) * r


class AdamW(Adam):
    """Loshchilov and Hutter 2019, algorithm 2, with alpha as the schedule that scales both terms."""

    def update(self, w: Array, g: Array, alpha: float, state: dict[str, Any]) -> Array:
        return w - alpha * (self.direction(g, state) + self.weight_decay * w)


RULES: dict[str, type[Rule]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam, "adamw": AdamW, "lamb": LAMB}
