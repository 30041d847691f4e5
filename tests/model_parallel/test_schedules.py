"""The order of micro-batches: what every schedule keeps, and what makes them different."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.model_parallel.schedules import (
    SCHEDULES,
    Backward,
    Forward,
    gpipe,
    most_held,
    one_forward_one_backward,
)

STAGES, COUNT = st.integers(1, 6), st.integers(0, 12)


def plans(schedule, stages, count):
    return [list(schedule(stages, stage, count)) for stage in range(stages)]


@pytest.mark.parametrize("name", SCHEDULES)
@given(STAGES, COUNT)
def test_each_micro_batch_goes_forward_then_backward_once_and_in_order(name, stages, count):
    for actions in plans(SCHEDULES[name], stages, count):
        for kind in (Forward, Backward):
            assert [action.number for action in actions if isinstance(action, kind)] == list(range(count))
        assert all(actions.index(Forward(number)) < actions.index(Backward(number)) for number in range(count))


@pytest.mark.parametrize("name", SCHEDULES)
@given(STAGES, COUNT)
def test_no_stage_waits_for_ever(name, stages, count):
    assert set(finished(plans(SCHEDULES[name], stages, count))) == {
        (stage, action) for stage in range(stages) for kind in (Forward, Backward) for action in map(kind, range(count))
    }


def finished(actions):
    """(stage, action) -> the tick in which it ends, when each takes one tick and waits for its neighbours' messages."""
    stages, done, tick = len(actions), {}, 0
    queues = [list(own) for own in actions]
    while any(queues):
        tick += 1
        ready = [s for s, queue in enumerate(queues) if queue and _can_begin(s, queue[0], done, stages)]
        assert ready, "a deadlock"
        for stage in ready:
            done[stage, queues[stage].pop(0)] = tick
    return done


def _can_begin(stage, action, done, stages):
    if isinstance(action, Forward):
        return stage == 0 or (stage - 1, action) in done
    return stage == stages - 1 or (stage + 1, action) in done


@given(STAGES, COUNT)
def test_1f1b_holds_as_many_as_there_are_stages_from_here_and_gpipe_all(stages, count):
    held = [most_held(actions) for actions in plans(one_forward_one_backward, stages, count)]
    assert held == [min(count, stages - stage) for stage in range(stages)]
    assert {most_held(actions) for actions in plans(gpipe, stages, count)} == {count}


@pytest.mark.parametrize("name", SCHEDULES)
@given(STAGES, st.integers(1, 12))
def test_the_idle_time_is_that_of_filling_and_emptying(name, stages, count):
    ticks = max(finished(plans(SCHEDULES[name], stages, count)).values())
    assert ticks == 2 * (count + stages - 1)
