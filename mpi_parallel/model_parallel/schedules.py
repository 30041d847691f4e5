"""In which order a pipeline stage takes the micro-batches of a step: pure generators, which know of no messages.

Four micro-batches on three stages; digits are forward, letters the backward of the same micro-batch:

    gpipe    stage 0   0 1 2 3 . . . . a . b . c . d
             stage 1   . 0 1 2 3 . . a . b . c . d
             stage 2   . . 0 1 2 3 a . b . c . d

    1f1b     stage 0   0 1 2 . . a . 3 b . c . d       at most 3 micro-batches' activations are held,
             stage 1   . 0 1 . a 2 b 3 c . d           at most 2,
             stage 2   . . 0 a 1 b 2 c 3 d             at most 1

Every stage takes the backwards in the order of the forwards, so gradients are the same sums under both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Forward:
    """Take micro-batch `number` forward."""

    number: int


@dataclass(frozen=True)
class Backward:
    """Take micro-batch `number` backward, and forget it."""

    number: int


Action = Forward | Backward
Schedule = Callable[[int, int, int], Iterator[Action]]


def gpipe(stages: int, stage: int, count: int) -> Iterator[Action]:  # noqa: ARG001, all stages take the same order
    """All `count` micro-batches forward, then all backward (Huang et al. 2019): simple, but holds all activations."""
    yield from map(Forward, range(count))
    yield from map(Backward, range(count))


def one_forward_one_backward(stages: int, stage: int, count: int) -> Iterator[Action]:
    """Fill the pipeline, then a backward after each forward (PipeDream-Flush, Narayanan et al. 2021).

    As fast as gpipe, and stage s holds the activations of at most `stages - s` micro-batches, however many there are.
    """
    ahead = min(count, stages - 1 - stage)
    yield from map(Forward, range(ahead))
    for number in range(ahead, count):
        yield Forward(number)
        yield Backward(number - ahead)
    yield from map(Backward, range(count - ahead, count))


def most_held(actions: Iterable[Action]) -> int:
    """The activations of how many micro-batches are held at a time, at the most."""
    held = most = 0
    for action in actions:
        held += 1 if isinstance(action, Forward) else -1
        most = max(most, held)
    return most


SCHEDULES: dict[str, Schedule] = {"gpipe": gpipe, "1f1b": one_forward_one_backward}
