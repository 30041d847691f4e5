"""Update rules, from the simplest to the hardest, in the letters of their papers; the formulas stand in the kernels.

A rule holds arrays of state as long as the store and updates any slice of it, so a rank can take the step of its share.
`g_SN` is the gradient in S slots, one a rank or all in one, which the rule sums as it reads them and the pace's scale
turns into the mean; `w` are the weights, `alpha` the learning rate. All arrays are float32, and all but `g_SN` flat.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device import Array, Pace
from mpi_parallel.device.relay import Mirror, Relay, in_turn
from mpi_parallel.nn.store import ParameterStore

Total = Callable[[NDArray[np.float64]], None]


class Optimizer(ABC):
    """What the rules share: their state and the count of steps."""

    names: tuple[str, ...] = ()  # of the state arrays
    takes_factors = False  # whether `update` does, by this name: the weights as operands, to be brought up to date, too

    def __init_subclass__(cls) -> None:
        """An `update` of one's own speaks for itself: it need not take factors because that of a base does."""
        super().__init_subclass__()
        if "update" in vars(cls):
            cls.takes_factors = vars(cls).get("takes_factors", False)

    def __init__(self, store: ParameterStore, weight_decay: float = 0.0) -> None:
        self.store, self.weight_decay, self.kernels = store, weight_decay, store.device.kernels
        self.steps = 0
        self.state: dict[str, Array] = {}
        for name in self.names:  # zeros, not zeros_like: memory that this rank never steps on is never taken
            self.state[name] = store.device.xp.zeros(store.size, store.weights.dtype)

    @property
    def narrows(self) -> bool:
        """Whether a step also brings the store's factors of the owned weights up to date."""
        return self.takes_factors and self.store.factors is not None and self.kernels.rules_narrow

    def step(self, owned: slice, alpha: float, scale: float = 1.0, total: Total | None = None) -> None:
        """Update the weights of the owned slice from `scale` times its gradient.

        `total` sums an array over the owners of the other slices, in place; rules that look at whole layers need it.
        """
        self.steps += 1
        self.apply(owned, Pace(scale, alpha, self.steps), total)

    def apply(self, owned: slice, pace: Pace | Array, total: Total | None = None) -> None:
        """The same at a pace that the device keeps by itself (device/interface.py): nothing here waits for it."""
        self._take(owned, pace)

    def relay(self, owned: slice, pace: Pace | Array, total: Total | None = None) -> Relay:
        """How device and host do that in turn."""
        return Relay(partial(self._take, owned, pace))

    def _take(self, owned: slice, pace: Pace | Array) -> None:
        state = (array[owned] for array in self.state.values())
        factors, more = self.store.factors, dict[str, Any]()
        if self.narrows and factors is not None:
            more["factors"] = factors[owned]
        self.update(self.store.weights[owned], self.store.terms[:, owned], pace, *state, **more)

    @abstractmethod
    def update(self, w: Array, g_SN: Array, pace: Pace | Array, *state: Array) -> None:
        """The rule, for arrays of one length."""


class SGD(Optimizer):
    """w -= alpha g; weight decay is a term of the gradient, as in Momentum and Adam."""

    takes_factors = True

    def update(self, w: Array, g_SN: Array, pace: Pace | Array, *state: Array, factors: Array | None = None) -> None:
        self.kernels.sgd(w, g_SN, pace, self.weight_decay, factors)


class Momentum(Optimizer):
    """v = mu v + g, w -= alpha v (Polyak 1964); as alpha is not in v, schedules act at once."""

    takes_factors = True
    names = ("v",)
    mu = 0.9

    def update(self, w: Array, g_SN: Array, pace: Pace | Array, *state: Array, factors: Array | None = None) -> None:
        (v,) = state
        self.kernels.momentum(w, v, g_SN, pace, self.mu, self.weight_decay, factors)


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1): w -= alpha m_hat / (sqrt(v_hat) + epsilon)."""

    takes_factors = True
    names = ("m", "v")
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    decoupled = False

    def update(self, w: Array, g_SN: Array, pace: Pace | Array, *state: Array, factors: Array | None = None) -> None:
        l2, decay = (0.0, self.weight_decay) if self.decoupled else (self.weight_decay, 0.0)
        m, v = state
        self.kernels.adam(w, m, v, g_SN, pace, self.beta1, self.beta2, self.epsilon, l2, decay, factors)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): also w *= 1 - alpha weight_decay."""

    decoupled = True


class LAMB(Adam):
    """Adam's direction plus weight decay, scaled in each layer to the size of its weights (You et al. 2020).

    r = m_hat / (sqrt(v_hat) + epsilon) + decay w, then w -= alpha |w| / |r| r, of each parameter by itself; the ratio
    is 1 where one of the norms is 0.
    """

    epsilon = 1e-6
    takes_factors = False

    def __init__(self, store: ParameterStore, weight_decay: float = 0.0) -> None:
        super().__init__(store, weight_decay)
        self.r: Array = store.device.xp.zeros(store.size, np.float32)
        self.squares: Array = store.device.xp.zeros((len(store.parameters), 2), np.float64)  # of w and r, by parameter
        self._everyones = Mirror(store.device, self.squares)

    def apply(self, owned: slice, pace: Pace | Array, total: Total | None = None) -> None:
        self.relay(owned, pace, total).run(self.store.device)

    def relay(self, owned: slice, pace: Pace | Array, total: Total | None = None) -> Relay:
        direct, step = partial(self._direct, owned, pace), partial(self._take, owned, pace)
        if total is None:
            return Relay(direct, None, step)
        squares = self._everyones
        return Relay(in_turn(direct, squares.fetch), partial(total, squares.values), in_turn(squares.put, step))

    def _direct(self, owned: slice, pace: Pace | Array) -> None:
        """The direction, and what there is of the norms."""
        w, r = self.store.weights, self.r
        m, v = (array[owned] for array in self.state.values())
        constants = (self.beta1, self.beta2, self.epsilon, self.weight_decay)
        self.kernels.lamb(r[owned], w[owned], m, v, self.store.terms[:, owned], pace, *constants)
        for part, squares in zip(self._parts(owned), self.squares, strict=True):
            self.kernels.squares(w[part], squares[:1])
            self.kernels.squares(r[part], squares[1:])

    def _take(self, owned: slice, pace: Pace | Array) -> None:
        for part, squares in zip(self._parts(owned), self.squares, strict=True):
            self.kernels.trust(self.store.weights[part], self.r[part], squares, pace)

    def _parts(self, owned: slice) -> list[slice]:
        return [_overlap(parameter.span, owned) for parameter in self.store.parameters.values()]


def _overlap(span: slice, owned: slice) -> slice:
    """What two slices have in common, perhaps nothing."""
    start = max(span.start, owned.start)
    return slice(start, max(start, min(span.stop, owned.stop)))


RULES: dict[str, type[Optimizer]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam, "adamw": AdamW, "lamb": LAMB}
