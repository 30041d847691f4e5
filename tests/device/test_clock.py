"""The stopwatch."""

import subprocess
import sys
import time

import pytest

from mpi_parallel.device import clock
from mpi_parallel.device.clock import PHASES, Clock, process_seconds


@pytest.fixture
def tick(monkeypatch):
    """A function that sets the time that the clock sees."""
    now = [100.0]
    monkeypatch.setattr(clock, "perf_counter", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_time_belongs_to_the_phase_entered_last(tick):
    watch = Clock()
    for phase, seconds in [("data", 1), ("compute", 2), ("merge", 4), ("compute", 8), ("update", 16)]:
        watch.enter(phase)
        tick(seconds)
    assert watch.total() == 31
    assert watch.seconds == {"data": 1, "compute": 10, "merge": 4, "update": 16, "other": 0}


def test_time_before_the_first_phase_is_other(tick):
    watch = Clock()
    tick(3)
    watch.enter("data")
    assert watch.seconds["other"] == 3


def test_the_total_counts_the_running_phase_and_lets_it_run_on(tick):
    watch = Clock()
    watch.enter("compute")
    tick(1)
    assert watch.total() == 1
    tick(1)
    assert watch.total() == 2
    assert watch.seconds["compute"] == 2


def test_reset_starts_from_zero_in_the_phase_other(tick):
    watch = Clock()
    watch.enter("compute")
    tick(5)
    watch.reset()
    tick(1)
    assert watch.total() == 1
    assert watch.seconds == {**dict.fromkeys(PHASES, 0.0), "other": 1}


def test_a_phase_that_does_not_exist_is_a_mistake(tick):
    watch = Clock()
    watch.enter("lunch")
    with pytest.raises(KeyError):
        watch.enter("data")


def test_process_seconds_go_as_the_wall_clock_does():
    before, started = process_seconds(), time.perf_counter()
    time.sleep(0.05)
    assert process_seconds() - before == pytest.approx(time.perf_counter() - started, abs=0.02)


def test_process_seconds_start_with_the_interpreter_not_with_the_import():
    code = (
        "import time; time.sleep(0.3); from mpi_parallel.device.clock import process_seconds; print(process_seconds())"
    )
    started = time.perf_counter()
    told = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.3 <= told <= time.perf_counter() - started + 0.02  # the kernel counts in hundredths of a second
