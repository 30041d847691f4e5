"""Update rules, from the simplest to the hardest, in the letters of their papers.

A rule holds arrays of state as long as the store and updates any slice of it, so a rank can take the step of its share.
`g` is the gradient, `w` the weights, `alpha` the learning rate; all arrays are flat float32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

from mpi_parallel.device import Array
from mpi_parallel.nn.store import ParameterStore

# Elements updated at a time on the host: few calls, and the arrays of a block stay in the cache. Measured for Adam
# on 109,386 weights: blocks of 16384 199 us, 32768 176 us, all at once 154 us.
BLOCK = 131072


class Optimizer(ABC):
    """What the rules share: the walk over the owned slice in blocks, and the count of steps."""

    names: tuple[str, ...] = ()  # of the state arrays

    def __init__(self, store: ParameterStore, weight_decay: float = 0.0) -> None:
        self.store, self.weight_decay = store, weight_decay
        self.steps = 0
        self.block = BLOCK if store.device.kind == "cpu" else store.size
        self.xp = store.device.xp
        self.scratch: Array = self.xp.empty(min(self.block, store.size), "float32")
        self.state: dict[str, Array] = {name: self.xp.zeros_like(store.weights) for name in self.names}

    def step(self, owned: slice, alpha: float) -> None:
        """Update the weights of the owned slice from its gradient, which is used up."""
        self.steps += 1
        for part in _blocks(owned, self.block):
            state = (self.state[name][part] for name in self.names)
            g, scratch = self.store.gradients[part], self.scratch[: part.stop - part.start]
            self.update(self.store.weights[part], g, scratch, alpha, *state)

    @abstractmethod
    def update(self, w: Array, g: Array, scratch: Array, alpha: float, *state: Array) -> None:
        """The rule, for one block; `scratch` is as long as the block."""

    def add_l2(self, w: Array, g: Array, scratch: Array) -> None:
        """g += weight_decay w: the gradient of weight_decay/2 |w|^2."""
        if self.weight_decay:
            self.xp.multiply(w, self.weight_decay, out=scratch)
            g += scratch


class SGD(Optimizer):
    """w -= alpha g."""

    def update(self, w: Array, g: Array, scratch: Array, alpha: float, *state: Array) -> None:
        self.add_l2(w, g, scratch)
        g *= alpha
        w -= g


class Momentum(Optimizer):
    """v = mu v + g, w -= alpha v (Polyak 1964, in the form of Sutskever et al. 2013), mu = 0.9."""

    names = ("v",)
    mu = 0.9

    def update(self, w: Array, g: Array, scratch: Array, alpha: float, *state: Array) -> None:
        (v,) = state
        self.add_l2(w, g, scratch)
        v *= self.mu
        v += g
        self.xp.multiply(v, alpha, out=g)
        w -= g


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1): w -= alpha m_hat / (sqrt(v_hat) + epsilon)."""

    names = ("m", "v")
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def update(self, w: Array, g: Array, scratch: Array, alpha: float, *state: Array) -> None:
        m, v = state
        xp, t = self.xp, self.steps
        self.decay(w, g, scratch, alpha)
        m *= self.beta1
        xp.multiply(g, 1 - self.beta1, out=scratch)
        m += scratch
        v *= self.beta2
        xp.multiply(g, g, out=g)
        g *= 1 - self.beta2
        v += g
        # Both bias corrections are moved out of the arrays: m_hat / (sqrt(v_hat) + eps) = c m / (sqrt(v) + eps root).
        root = math.sqrt(1 - self.beta2**t)
        xp.sqrt(v, out=scratch)
        scratch += self.epsilon * root
        xp.divide(m, scratch, out=scratch)
        scratch *= alpha * root / (1 - self.beta1**t)
        w -= scratch

    def decay(self, w: Array, g: Array, scratch: Array, alpha: float) -> None:
        """Plain Adam takes weight decay as a term of the gradient."""
        self.add_l2(w, g, scratch)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): also w *= 1 - alpha weight_decay."""

    def decay(self, w: Array, g: Array, scratch: Array, alpha: float) -> None:
        if self.weight_decay:
            w *= 1 - alpha * self.weight_decay


RULES: dict[str, type[Optimizer]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam, "adamw": AdamW}


def _blocks(owned: slice, size: int) -> Iterator[slice]:
    for start in range(owned.start, owned.stop, size):
        yield slice(start, min(start + size, owned.stop))
