"""Steps that are begun before those before them are over: what is heard of them when, and when none is under way."""

import pytest

from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.training.ahead import Steps, in_order
from mpi_parallel.training.faults.time_limit import TimeLimit


class Told(Steps):
    """Tells of steps what it was asked, and keeps what was done in which order."""

    def __init__(self, ahead):
        self.ahead, self.log, self.under_way = ahead, [], []

    def begin(self, batch, number, stop=False, save=False):
        self.log.append(f"begin {number}")
        self.under_way.append(Totals(batch, 0, number, stop, True, save=save))

    def end(self):
        self.log.append(f"end {self.under_way[0].count}")
        return self.under_way.pop(0)


def taken(steps, count=8, first=0, stops=(), saves=(), rests=()):
    """(number, stop, save, how many are under way) of each step, as it is handed out."""
    batches = [float(number) for number in range(first, first + count)]
    asked = lambda number: (number in stops, number in saves)  # noqa: E731
    told = []
    for batch, totals in in_order(steps, batches, first, asked, rests.__contains__):
        assert batch == totals.loss == totals.count
        told.append((totals.count, totals.stop, totals.save, len(steps.under_way)))
    return told


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 8])
def test_every_step_is_heard_of_once_in_order_and_none_is_left(ahead, count):
    steps = Told(ahead)
    told = taken(steps, count, first=3)
    assert [number for number, *_ in told] == list(range(3, 3 + count))
    assert [under_way for *_, under_way in told] == [min(ahead, left) for left in reversed(range(count))]
    assert not steps.under_way


def test_the_next_ones_are_begun_before_a_step_is_heard_of():
    steps = Told(2)
    taken(steps, 4)
    assert steps.log == ["begin 0", "begin 1", "begin 2", "end 0", "begin 3", "end 1", "end 2", "end 3"]


def test_who_does_not_run_ahead_hears_of_each_step_at_once():
    steps = Told(0)
    assert taken(steps, 3, stops=(1,), saves=(0,)) == [(0, False, True, 0), (1, True, False, 0), (2, False, False, 0)]
    assert steps.log == ["begin 0", "end 0", "begin 1", "end 1", "begin 2", "end 2"]


def test_nothing_is_under_way_behind_a_step_that_needs_the_device_at_rest():
    steps = Told(2)
    told = taken(steps, rests=(5,))  # 5 steps taken: behind number 4
    assert [under_way for *_, under_way in told] == [2, 2, 2, 1, 0, 2, 1, 0]


def test_requests_come_with_the_last_of_the_steps_that_were_under_way():
    told = taken(Told(2), saves=(1, 2, 6))
    assert [number for number, _, save, _ in told if save] == [3, 7]
    assert [under_way for *_, save, under_way in told if save] == [0, 0]
    told = taken(Told(2), stops=(4,), saves=(3,))
    assert [(number, stop, save) for number, stop, save, _ in told if stop or save] == [(5, True, True)]


@pytest.mark.parametrize("step", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_time_limit_leaves_time_for_the_steps_that_are_begun_before_it_is_heard_of(step, ahead):
    """Each step takes so long, and the host is held up by it when it has run as far ahead as it may."""
    now = 0.0
    limit = TimeLimit(400.0, lambda: now)
    for number in range(100_000):
        if limit.near(5.0, ahead):
            break
        now += step if number >= ahead else 0.0
    assert now > 0
    left = 400.0 - now
    assert left >= (1 + 2 * ahead) * step + 5.0
    assert left <= 20.0 + 2 * (1 + 2 * ahead) * step + 2 * 5.0
