"""Signs of life of this process: what it does, whether it waits in a message, how often it has moved on.

A watchdog in another thread reads them. They are plain attributes of one object a process, as there is one main thread
whose whereabouts they are; to set one takes some 50 ns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Self = TypeVar("Self")


class Pulse:
    """`stage` counts what all ranks do alike, one after the other, and `doing` names it; `beats` count any progress."""

    def __init__(self) -> None:
        self.stage, self.doing = 0, "starting"
        self.beats = 0
        self.step = 0  # the step that is being taken, from 1; 0 outside of training
        self.halted = False  # whether the job is being ended: the main thread goes nowhere any more
        self.waits = 0  # how many messages, one within the other, this rank is waiting in

    def enter(self, doing: str) -> None:
        """All ranks begin the next thing."""
        self.stage, self.doing, self.step = self.stage + 1, doing, 0
        self.beat()

    def beat(self) -> None:
        """This rank has moved on within what it does: long work that waits for nobody calls it now and then."""
        self.beats += 1
        while self.halted:
            time.sleep(1)

    def take(self, step: int) -> None:
        """Begin a step."""
        self.step = step
        self.beat()


PULSE = Pulse()


def waiting(verb: Callable[Concatenate[Self, P], T]) -> Callable[Concatenate[Self, P], T]:
    """A verb in which a rank may have to wait for others: the watchdog can tell who waits from who is waited for."""

    @wraps(verb)
    def noted(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        PULSE.waits += 1
        try:
            return verb(self, *args, **kwargs)
        finally:  # where ranks may die, verbs raise and the others go on
            PULSE.waits -= 1

    return noted
