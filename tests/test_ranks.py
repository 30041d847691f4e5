"""The tests' own machinery: a failure on one rank must end the run, soon, and be seen."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from mpi4py import MPI

from tests.launch import launch, remove_sessions

PREAMBLE = """
import pytest
from mpi4py import MPI
world = MPI.COMM_WORLD
"""


def pytest_on_2_ranks(folder: Path, test: str) -> tuple[int, str, float]:
    """Exit status, output and seconds of a run with one test."""
    path = folder / "test_it.py"
    path.write_text(PREAMBLE + test)
    start = time.monotonic()
    done = launch(2, "-m", "pytest", "--color=no", "-c", "setup.cfg", "-p", "tests.ranks", "--rootdir", folder, path)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - start


def test_a_failure_on_one_rank_fails_all_and_the_run_goes_on(tmp_path):
    status, output, _ = pytest_on_2_ranks(
        tmp_path,
        """
@pytest.mark.parallel(2)
def test_one():
    assert world.rank == 0, "not I"

@pytest.mark.parallel(2)
def test_two():
    assert world.allreduce(1) == 2
""",
    )
    assert status != 0
    assert "not I" in output  # said by rank 1
    assert "failed on rank 1 of 2" in output  # in the report of rank 0
    assert "1 failed, 1 passed" in output


def test_a_failure_before_a_collective_ends_the_job_and_shows_who_waited(tmp_path):
    status, output, seconds = pytest_on_2_ranks(
        tmp_path,
        """
@pytest.mark.parallel(2)
def test_it():
    assert world.rank == 0, "not I"
    world.allreduce(1)
""",
    )
    assert status != 0
    assert "not I" in output
    assert "the others wait in a message" in output
    assert 'test_it.py", line 9 in test_it' in output  # rank 0
    assert seconds < 30


def test_a_collective_that_hangs_is_ended_by_the_timeout_with_every_stack(tmp_path):
    status, output, seconds = pytest_on_2_ranks(
        tmp_path,
        """
@pytest.mark.parallel(2)
@pytest.mark.timeout(2)
def test_it():
    world.recv(source=MPI.ANY_SOURCE)
""",
    )
    assert status != 0
    for rank in range(2):
        assert f"[rank {rank} of 2] test_it.py::test_it did not end within 2 s" in output
    assert "world.recv(source=MPI.ANY_SOURCE)" in output
    assert seconds < 30


def test_a_program_past_its_deadline_is_ended_with_its_stacks():
    with pytest.raises(AssertionError, match="did not end within 2 s") as failure:
        launch(2, "-c", "from mpi4py import MPI; MPI.COMM_WORLD.recv()", deadline=2)
    assert "most recent call first" in str(failure.value)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_number_of_ranks_starts_unbound(ranks):
    program = (
        "import os; from mpi4py import MPI; print(f'{MPI.COMM_WORLD.size} {len(os.sched_getaffinity(0))}\\n', end='')"
    )
    done = launch(ranks, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(ranks), str(len(os.sched_getaffinity(0)))] * ranks


@pytest.mark.parallel([2, 3, 4])
def test_the_shared_path_is_shared(shared_path):
    (shared_path / str(MPI.COMM_WORLD.rank)).touch()
    MPI.COMM_WORLD.Barrier()
    assert len(list(shared_path.iterdir())) == MPI.COMM_WORLD.size


def test_what_a_killed_launcher_left_does_not_keep_a_later_one_from_starting(tmp_path, monkeypatch):
    """Of processes that are there nothing is touched, nor what is no launcher's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f"ompi.{gone.pid}", f"ompi.{os.getpid()}", "ompi.node1.0"):
        (tmp_path / name / "0").mkdir(parents=True)
    remove_sessions()
    assert {path.name for path in tmp_path.iterdir()} == {f"ompi.{os.getpid()}", "ompi.node1.0"}
