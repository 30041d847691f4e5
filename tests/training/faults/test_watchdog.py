"""The watchdog: jobs in which a rank hangs or dies end soon, and tell which rank it was and where."""

import platform
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mpi_parallel.mpi.pulse import PULSE, waiting
from mpi_parallel.training.faults.sightings import Sightings
from tests.launch import launch
from tests.samples import write_image_set

TIMEOUT = 3
FAULTS = {
    "hang": ("1", "forward:9", "hang"),  # rank, place, what happens there
    "hang of rank 0": ("0", "evaluation:1", "hang"),
    "stop": ("1", "forward:9", "stop"),
    "stop of rank 0": ("0", "merge:9", "stop"),
    "lock": ("1", "reading:1", "lock"),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """How the jobs with these faults ended; they mostly sleep, so some run at once."""
    folder = tmp_path_factory.mktemp("hung")
    write_image_set(folder / "set.h5")

    def job(name):
        options = ["--data", folder / "set.h5", "--batch-size", "8", "--hang-timeout", f"{TIMEOUT}s"]
        out = folder / name.replace(" ", "-")
        return launch(3, "-m", "tests.faulty", *FAULTS[name], *options, "--out", out, "--threads", "1")

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(FAULTS, pool.map(job, FAULTS), strict=True))


@pytest.mark.parametrize("name", FAULTS)
def test_a_hung_rank_is_named_and_all_stacks_are_shown(ended, name):
    job, rank = ended[name], int(FAULTS[name][0])
    assert job.returncode == 1, job.stderr
    if name == "stop of rank 0":  # then nobody has an overview
        assert f"rank 0 on {platform.node()}" in job.stderr
        assert "does not answer" in job.stderr
    else:
        assert f"did not arrive: rank {rank} on {platform.node()}" in job.stderr
    for other in {0, 1, 2} - {rank}:
        assert f"watchdog: rank {other} on {platform.node()} (process" in job.stderr
    assert job.stderr.count("in train\n") >= 3, "a stack of each"
    assert "finished after" not in job.stdout, "who was woken up to show its stack went on"


def test_a_job_that_goes_on_is_left_alone(tmp_path):
    """Pauses shorter than the timeout are no hang, however long they are together."""
    write_image_set(tmp_path / "set.h5")
    options = ["--data", tmp_path / "set.h5", "--batch-size", "8", "--out", tmp_path / "run", "--hang-timeout", "5s"]
    pauses = "1,1,1", "forward:3,forward:6,forward:9", "pause,pause,pause"
    job = launch(2, "-m", "tests.faulty", *pauses, *options)
    assert job.returncode == 0, job.stderr
    assert "watchdog" not in job.stderr


class TestSightings:
    @pytest.fixture
    def seen(self):
        seen = Sightings(0, ["north", "north", "south"], [10, 11, 12], patience=5)
        for rank in range(3):
            seen[rank].line = True
            seen[rank].hear(time.monotonic(), "4 17 300 1 step 17")
        return seen

    def test_who_works_while_others_wait_is_missed(self, seen):
        seen[1].hear(now := time.monotonic(), "4 17 300 0 step 17")
        assert seen.missing(now) == [1]
        assert "did not arrive: rank 1 on north (process 11): step 17, at work" in seen.told(now)
        assert "waiting: rank 2 on south (process 12): step 17, in a message" in seen.told(now)

    def test_who_is_behind_is_missed(self, seen):
        seen[2].hear(now := time.monotonic(), "4 16 290 1 step 16")
        assert seen.missing(now) == [2]

    def test_who_does_not_answer_is_missed(self, seen):
        later = time.monotonic() + 6
        seen[1].heard = later
        assert seen.missing(later) == [2]
        assert "does not answer, is it stopped?" in seen.told(later)

    def test_nobody_is_missed_when_all_wait(self, seen):
        now = time.monotonic()
        assert seen.missing(now) == []
        assert "all ranks wait for each other" in seen.told(now)

    def test_who_has_left_is_not_missed(self, seen):
        seen[1].gone = True
        seen[1].waits = False
        assert seen.missing(time.monotonic()) == []

    def test_any_progress_counts(self, seen):
        now = time.monotonic()
        seen[1].hear(now + 100, "4 17 301 1 step 17")
        assert seen.quiet(now + 101) == pytest.approx(1)


def test_what_waiting_costs():
    """A few per step are allowed: far less than a microsecond each."""

    class Messages:
        @waiting
        def none(self):
            return PULSE.waits

    messages = Messages()
    assert (messages.none(), PULSE.waits) == (1, 0)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(2000):
            messages.none()
        times.append((time.perf_counter() - began) / 2000)
    assert np.min(times) < 2e-6
