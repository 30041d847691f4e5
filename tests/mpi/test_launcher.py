"""Starting ranks from outside: which launcher, and what it is told."""

import sys

from mpi_parallel.mpi.launcher import child_environment, mpirun_beside


def test_a_launcher_is_not_told_that_it_is_a_rank(monkeypatch):
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_SIZE", "PRTE_LAUNCHED"):
        monkeypatch.setenv(name, "1")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_MCA_osc", "PRTE_MCA_hwloc_default_binding_policy", "PATH"):
        monkeypatch.setenv(name, "kept")
    child = child_environment()
    assert not {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_SIZE", "PRTE_LAUNCHED"} & child.keys()
    assert child["OMPI_ALLOW_RUN_AS_ROOT"] == child["OMPI_MCA_osc"] == child["PATH"] == "kept"


def test_the_mpirun_beside_python_comes_before_that_of_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert mpirun_beside() == "mpirun"
    (tmp_path / "mpirun").touch()
    assert mpirun_beside() == str(tmp_path / "mpirun")
