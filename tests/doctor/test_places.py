"""The map of ranks to cores and GPUs, and what is wrong with it."""

import pytest

from mpi_parallel.doctor.places import Place, judge, numbers, ranges


def place(rank, cores, threads=1, host="n0", **facts):
    return Place(rank, host, list(cores), threads, node_cores=list(range(4)), physical=len(cores), **facts)


def test_a_rank_a_core_is_well():
    section = judge([place(rank, [rank]) for rank in range(4)])
    assert (section.warnings, section.problems) == ([], [])
    assert ("rank 3", "n0, cores 3, 1 thread") in section.rows


def test_unbound_ranks_that_share_the_cores_fairly_are_well():
    assert not judge([place(rank, range(4), threads=2) for rank in range(2)]).warnings


def test_ranks_bound_to_one_core_are_named_and_so_are_idle_cores():
    section = judge([place(0, [0]), place(1, [0])])
    (warning,) = section.warnings
    assert "cores 0 carry more than one rank each (ranks 0-1)" in warning
    assert "bind" in warning
    assert ("on n0", "cores 1-3 belong to no rank (idle, or another job's)") in section.rows


def test_more_ranks_than_cores():
    (warning,) = judge([place(rank, range(4)) for rank in range(6)]).warnings
    assert "cores 0-3 carry more than one rank each (ranks 0-5): start fewer ranks" in warning


def test_more_threads_than_cores():
    (warning,) = judge([place(rank, range(4), threads=4) for rank in range(2)]).warnings
    assert "8 threads of 2 ranks on 4 cores: lower --threads" in warning


def test_cores_without_a_thread_are_told():
    assert ("on n0", "3 of 4 usable cores have no thread") in judge([place(0, range(4))]).rows


def test_hosts_are_judged_apart():
    assert not judge([place(0, [0]), place(1, [0], host="n1")]).warnings


def test_gpus_that_are_shared_and_those_that_nobody_has():
    gpus = ["0000:01:00.0", "0000:02:00.0"]
    ranks = [place(rank, [rank], gpu=gpus[0], gpu_name="G", node_gpus=gpus) for rank in range(2)]
    shared, idle = judge(ranks).warnings
    assert "ranks 0-1 share GPU 0000:01:00.0" in shared
    assert "GPU 0000:02:00.0 has no rank" in idle


def test_a_rank_without_a_gpu_among_others_with_one():
    (warning,) = judge([place(0, [0], gpu="a", gpu_name="G"), place(1, [1])]).warnings
    assert "ranks 1 have no GPU" in warning


def test_long_jobs_have_a_short_table():
    section = judge([place(rank, [rank % 4], host=f"n{rank // 4}") for rank in range(100)])
    assert len(section.rows) < 40
    assert len(section.facts["ranks"]) == 100


@pytest.mark.parametrize(("text", "values"), [("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("", [])])
def test_ranges_are_written_and_read(text, values):
    assert ranges(values) == text
    assert numbers(text) == values
