"""The schedules, at exact points."""

import pytest

from mpi_parallel.nn.learning_rate import learning_rate
from tests.once import once

pytestmark = once


def rates(schedule: str, warmup: int, total: int, steps: range) -> list[float]:
    return [learning_rate(step, base=2.0, schedule=schedule, warmup=warmup, total=total) for step in steps]


def test_constant():
    assert rates("constant", 0, 3, range(5)) == [2.0] * 5


def test_warm_up_rises_linearly_and_ends_at_the_base():
    assert rates("constant", 4, 10, range(6)) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_cosine_at_its_quarters():
    assert rates("cosine", 0, 8, range(0, 9, 2)) == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0])


def test_cosine_starts_after_the_warm_up():
    assert rates("cosine", 2, 6, range(6)) == pytest.approx([1.0, 2.0, 2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])


def test_cosine_stays_at_zero_beyond_the_end():
    assert rates("cosine", 1, 4, range(4, 9)) == pytest.approx([0.0] * 5, abs=1e-15)


def test_every_step_of_a_run_moves_the_weights():
    assert min(rates("cosine", 3, 20, range(20))) > 0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_as_long_as_the_run_or_longer(schedule):
    assert rates(schedule, 4, 4, range(4)) == [0.5, 1.0, 1.5, 2.0]
    assert rates(schedule, 8, 4, range(4)) == [0.25, 0.5, 0.75, 1.0]
