"""A short fault campaign; `python benchmarks/faults.py` is the long one."""

import json

import pytest
from mpi4py import MPI

from tests.launch import launch


@pytest.mark.skipif("MPICH" in MPI.Get_library_version(), reason="the campaign looks for Open MPI's processes")
@pytest.mark.timeout(400)
def test_whatever_breaks_runs_end_with_the_same_weights(tmp_path):
    report = tmp_path / "report.json"
    short = ("--faults", "8", "--steps", "300", "--latest", "1.8", "--seed", "5")
    ended = launch(None, "benchmarks/faults.py", *short, "--json", report, deadline=380)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(report.read_text())
    assert told["faults"] == 8
    assert told["ended with a wrong digest"] == told["hung"] == told["other"] == 0
    assert told["newest and previous checkpoint both unreadable"] == 0
