"""When to stop before the job is ended."""

import os
import stat
import time

import pytest

from mpi_parallel.training.faults.time_limit import TimeLimit, time_limit_of


class Clock:
    """A time that a test moves on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def steps_until_near(limit, clock, step, saving):
    for number in range(100000):
        if limit.near(saving):
            return number
        clock.now += step
    return None


@pytest.mark.parametrize("step", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("saving", [0.0, 5.0])
def test_there_is_time_for_the_last_step_and_its_checkpoint_but_not_for_many_more(step, saving):
    clock = Clock()
    limit = TimeLimit(200.0, clock)
    assert steps_until_near(limit, clock, step, saving) > 0
    assert limit.reached
    left = limit.end - clock.now
    assert left >= step + saving
    assert left <= 10.0 + 3 * step + 2 * saving


def test_a_slow_evaluation_between_two_steps_is_kept_in_mind():
    clock = Clock()
    limit = TimeLimit(200.0, clock)
    for took in (0.1, 30.0, 0.1):
        assert not limit.near(0.0)
        clock.now += took
    clock.now = 150.0
    assert limit.near(0.0)


def test_a_limit_that_is_over_allows_the_one_step_that_tells_all_ranks():
    assert TimeLimit(-1.0, Clock()).near(0.0)


@pytest.fixture
def job(monkeypatch):
    for name in ("SLURM_JOB_END_TIME", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_time_counts_from_the_start_of_the_process(job):
    assert time_limit_of("1:00:00").end == pytest.approx(time.time() + 3600, abs=600)


def test_no_job_no_limit(job):
    assert time_limit_of("auto") is None


def test_the_end_of_the_job_from_the_environment(job):
    job.setenv("SLURM_JOB_END_TIME", "2000000000")
    assert time_limit_of("auto").end == 2e9


def test_the_end_of_the_job_from_squeue(job, tmp_path):
    squeue = tmp_path / "squeue"
    squeue.write_text(
        '#!/bin/sh\n[ "$SLURM_TIME_FORMAT $*" = "%s --noheader --jobs 7 --format %e" ] && echo 2000000000\n'
    )
    squeue.chmod(squeue.stat().st_mode | stat.S_IXUSR)
    job.setenv("SLURM_JOB_ID", "7")
    job.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert time_limit_of("auto").end == 2e9


def test_a_job_of_which_nobody_knows_the_end_has_no_limit(job, tmp_path, caplog):
    job.setenv("SLURM_JOB_ID", "7")
    job.setenv("PATH", str(tmp_path))
    assert time_limit_of("auto") is None
