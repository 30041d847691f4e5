"""Jobs that Slurm stops in mid-epoch go on from there: the last weights are those of a run that was left alone.

Slurm looks at time limits, which are whole minutes, every half a minute: with USR1 asked for 25 s before the end, it
comes 5 to 35 s after the start. Each step takes a pause (paced/), so that all jobs can run side by side and none ends
before it is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.evidence import DATA, MPICH, events, log
from tests.slurm.paced.sitecustomize import PAUSE

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

JOB = ("requeue.sbatch", DATA, "--reproducible", "--batch-size", "480", "--progress", "none", "--no-report")
PACED = {"PYTHONPATH": str(Path(__file__).parent / "paced")}
SHORT, LONG = (("--steps", str(round(seconds / PAUSE))) for seconds in (6, 40))  # the long one outlasts its signal


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, root: Path) -> dict[str, tuple[int, str]]:
    """(number, digest of the run that was left alone) of the jobs that were stopped, by what stopped them."""
    limited = submitted(cluster, root, *LONG, options=["--time=1", "--signal=USR1@25"])
    alone = [submitted(cluster, root, *steps) for steps in (SHORT, LONG)]
    requeued = stopped(cluster, root, "scontrol", "requeue")
    signalled = stopped(cluster, root, "scancel", "--signal=TERM", **MPICH)
    for number in (*alone, requeued, signalled, limited):
        assert cluster.ended(number, 200)["JobState"] == "COMPLETED", log(root)
    short, long = (events(root, f"slurm-{number}")[-1]["weights_sha256"] for number in alone)
    return {"limit": (limited, long), "requeue": (requeued, short), "signal": (signalled, short)}


def submitted(cluster: Cluster, root: Path, *words: str, options: Sequence[str] = (), **settings: str) -> int:
    """Submit the job on two ranks; its number."""
    return cluster.submit(root, *JOB, *words, options=["--ntasks=2", *options], **PACED, **settings)


def stopped(cluster: Cluster, root: Path, *command: str, **settings: str) -> int:
    """Submit a job and stop it by this command once it trains; its number."""
    number = submitted(cluster, root, *SHORT, **settings)
    cluster.wait_for("first epoch", lambda: len(events(root, f"slurm-{number}")) > 2, 60)
    time.sleep(0.5)
    cluster.run(*command, str(number))
    return number


@pytest.mark.parametrize("stopped_by", ["limit", "requeue", "signal"])
def test_it_goes_on_from_the_queue_to_the_same_weights(cluster, root, jobs, stopped_by):
    number, digest = jobs[stopped_by]
    ended = cluster.job(number)
    assert int(ended["Restarts"]) >= 1
    lines = events(root, f"slurm-{number}")
    stops = [line for line in lines if line["event"] == "end" and line["reason"] in ("signal", "time-limit")]
    assert len(stops) == int(ended["Restarts"])
    resumed = [line["step"] for line in lines if line["event"] == "resume"]
    assert resumed == [line["step"] for line in stops] and resumed[0] > 0, "a step was lost, or taken twice"
    assert lines[-1]["weights_sha256"] == digest


def test_they_were_stopped_in_mid_epoch(root, jobs):
    lines = [line for number, _ in jobs.values() for line in events(root, f"slurm-{number}")]
    an_epoch = next(line["step"] for line in lines if line["event"] == "epoch")
    assert any(line["step"] % an_epoch for line in lines if line["event"] == "resume")
