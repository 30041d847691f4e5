"""Measurements of messages and clocks, and the trial with a GPU's memory."""

import subprocess

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.mpi import cuda_probe
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.probes import ping_pong


@pytest.mark.parallel([2, 3])
def test_a_message_takes_time_and_all_ranks_hear_how_much():
    comm = Communicator(MPI.COMM_WORLD)
    seconds = ping_pong(comm, comm.size - 1, 1 << 16, 5)
    assert 0 < seconds < 1
    assert np.ptp(comm.gather(np.array([seconds]))) == 0


def ended(monkeypatch, status, told=""):
    """What the probe makes of a child that ends like this."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], status, "", told))
    return cuda_probe.probe()


def test_a_child_that_dies_shows_that_mpi_is_not_aware(monkeypatch):
    found = ended(monkeypatch, -11)
    assert found.aware is False
    assert "signal 11" in found.why


def test_a_child_that_ends_well_shows_that_it_is(monkeypatch):
    assert ended(monkeypatch, 0).aware


def test_a_child_that_hangs_shows_that_it_is_not(monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("probe", 60)

    monkeypatch.setattr(subprocess, "run", hang)
    assert cuda_probe.probe().aware is False


def test_without_a_gpu_nothing_is_known(monkeypatch):
    found = ended(monkeypatch, cuda_probe.NO_GPU, "CuPy finds no GPU")
    assert found == cuda_probe.Awareness(None, "not tried: CuPy finds no GPU")
