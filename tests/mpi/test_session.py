"""How a program under MPI starts and ends: whatever a rank does, all end, soon, and tell why once."""

import platform
import re
import textwrap
import time

import pytest
from mpi4py import MPI

from mpi_parallel.mpi.session import LAUNCHED_SIZE, check_launcher
from mpi_parallel.options import InputError
from tests.launch import launch

HOST = platform.node()
SECONDS = 5  # from the failure of a rank to the end of the job

PROGRAM = r"""
import sys, time
import numpy as np
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import InputError

def main(world, arguments):
    rank, size = world.rank, world.size

    def wait_for_the_others():
        world.sum(np.zeros(1))

    def at(*ranks):
        if rank in ranks:
            sys.stdout.write(f"failing at {{time.time()}}\n")  # in one piece: the ranks' texts come mixed
            sys.stdout.flush()
        return rank in ranks

    wait_for_the_others()
{body}
    return 0

launch(main)
"""


def end_of(body, ranks=2):
    """How a program with this main ended; it has to end soon after a rank has failed."""
    ended = launch(ranks, "-c", PROGRAM.format(body=textwrap.indent(textwrap.dedent(body), "    ")))
    failed_at = [float(seconds) for seconds in re.findall(r"failing at ([\d.]+)", ended.stdout)]
    assert time.time() - min(failed_at, default=time.time()) < SECONDS
    return ended


@pytest.mark.parametrize("failing", [0, 2])
def test_one_rank_fails_while_the_others_wait_for_it(failing):
    ended = end_of(
        f"""
        if at({failing}):
            raise RuntimeError("the disk is gone")
        wait_for_the_others()
    """,
        ranks=3,
    )
    assert ended.returncode not in (0, 2)
    assert ended.stderr.count("Traceback (most recent call last)") == 1
    assert ended.stderr.count("RuntimeError: the disk is gone") == 1
    assert f"rank {failing} on {HOST}: Traceback" in ended.stderr
    assert ", in main\n" in ended.stderr


def test_some_ranks_fail_while_another_waits_for_them():
    ended = end_of(
        """
        if at(0, 1):
            raise RuntimeError("the disk is gone")
        wait_for_the_others()
        """,
        ranks=3,
    )
    assert ended.returncode not in (0, 2)
    assert f"rank 0 on {HOST}: Traceback" in ended.stderr
    assert ended.stderr.count("RuntimeError: the disk is gone") == 1


def test_a_rank_fails_when_the_others_have_ended():
    ended = end_of("""
        if at(1):
            time.sleep(0.7)
            raise RuntimeError("too late")
    """)
    assert ended.returncode not in (0, 2)
    assert ended.stderr.count("RuntimeError: too late") == 1


def test_all_ranks_fail_alike():
    ended = end_of("""
        at(rank)
        raise RuntimeError("no such thing")
    """)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback (most recent call last)") == 1
    assert ended.stderr.count("RuntimeError: no such thing") == 1


def test_all_ranks_fail_each_in_its_way():
    ended = end_of("""
        at(rank)
        raise RuntimeError(f"part {rank} is gone")
    """)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback (most recent call last)") == 2
    for rank in range(2):
        assert ended.stderr.count(f"RuntimeError: part {rank} is gone") == 1
        assert f"rank {rank} on {HOST}: Traceback" in ended.stderr


def test_wrong_input_on_one_rank():
    ended = end_of("""
        if at(1):
            raise InputError("set.h5: row 7 is no good")
        wait_for_the_others()
    """)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("set.h5: row 7 is no good") == 1
    assert f"rank 1 on {HOST}: error: set.h5: row 7 is no good\n" in ended.stderr


def test_wrong_input_on_all_ranks():
    ended = end_of("""
        at(rank)
        raise InputError("--lr 0: must be a positive number")
    """)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("error: --lr 0: must be a positive number\n") == 1


def test_one_rank_leaves_by_itself_while_the_others_wait_for_it():
    ended = end_of("""
        if at(1):
            sys.exit(5)
        wait_for_the_others()
    """)
    assert ended.returncode == 5


def test_the_status_of_main_is_that_of_the_job():
    ended = end_of("return 75")
    assert ended.returncode == 75
    assert "left with status" not in ended.stderr


def test_one_rank_returns_a_status_while_the_others_wait_for_it():
    ended = end_of(
        """
        import mpi_parallel.mpi.session
        mpi_parallel.mpi.session.COMPANY = 1.0
        if at(1):
            return 5
        wait_for_the_others()
        """
    )
    assert ended.returncode == 5
    assert f"rank 1 on {HOST}: left with status 5, but other ranks are still at work" in ended.stderr


class TestLauncher:
    @pytest.fixture(autouse=True)
    def no_launcher(self, monkeypatch):
        for name in LAUNCHED_SIZE:
            monkeypatch.delenv(name, raising=False)

    def test_none(self):
        check_launcher(1)

    @pytest.mark.parametrize("name", LAUNCHED_SIZE)
    def test_it_started_as_many_as_there_are(self, monkeypatch, name):
        monkeypatch.setenv(name, "1")
        check_launcher(1)
        monkeypatch.setenv(name, "4")
        check_launcher(4)

    @pytest.mark.parametrize("name", LAUNCHED_SIZE)
    def test_it_started_many_and_each_is_alone(self, monkeypatch, name):
        monkeypatch.setenv(name, "4")
        with pytest.raises(InputError, match=rf"started 4 processes \({name}.* knows of 1"):
            check_launcher(1)

    def test_the_one_nearest_to_the_process_counts(self, monkeypatch):
        """An mpirun of one rank within an srun of several tasks, as a batch script may have it."""
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
        check_launcher(1)

    def test_a_program_that_each_process_takes_for_its_own_is_refused(self):
        """What srun leaves with the wrong --mpi: the other MPI's variables, and an MPI that does not know them."""
        other = "OMPI_COMM_WORLD_SIZE" if "MPICH" in MPI.Get_library_version() else "SLURM_STEP_NUM_TASKS"
        ended = launch(None, "-c", PROGRAM.format(body="    print('hello')"), env={other: "2"})
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert "Traceback" not in ended.stderr
        assert f"the launcher started 2 processes ({other})" in ended.stderr
