"""Versions that differ between ranks."""

from mpi_parallel.doctor.software import judge_versions

SAME = {"numpy": "2.4", "hdf5": "1.14"}


def test_the_same_versions_everywhere_are_well():
    assert not judge_versions([SAME, SAME]).problems


def test_ranks_with_another_version_are_named():
    (problem,) = judge_versions([SAME, SAME, SAME | {"numpy": "2.3"}]).problems
    assert problem == "ranks have different versions of numpy: 2.4 on ranks 0, 1; 2.3 on rank 2"
