"""What checkpoints cost, measured briefly."""

import json

import pytest
from mpi4py import MPI

from mpi_parallel.benchmark.checkpoint import main
from mpi_parallel.mpi.communicator import Communicator


@pytest.mark.parallel([2])
def test_overhead_and_rate_are_told(shared_path, monkeypatch):
    monkeypatch.setattr("mpi_parallel.benchmark.checkpoint.ROWS", 600)
    brief = ["--seconds", "0.1", "--rounds", "1", "--every", "0.1s", "--parameters", "20000"]
    to = shared_path / "figures.json"
    assert main(Communicator(MPI.COMM_WORLD), [*brief, "--folder", str(shared_path), "--to", str(to)]) == 0
    MPI.COMM_WORLD.Barrier()
    told = json.loads(to.read_text())
    assert 18000 < told["parameters"] < 22000
    assert min(told["epoch_seconds"], told["epoch_seconds_saved"], *told["shares"].values()) > 0
    assert set(told["rates"]) == set(told["large_rounds"]) == {"training", "alone", "plain", "plain_direct"}
    assert [path.name for path in shared_path.iterdir()] == ["figures.json"]
