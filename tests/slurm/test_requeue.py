"""Jobs that Slurm stops in mid-epoch go on from there: the last weights are those of a run that was left alone.

Slurm looks at time limits, which are whole minutes, every half a minute: with USR1 asked for 25 s before the end, it
comes 5 to 35 s after the start. Jobs run one after the other, as ranks that share a core wait for each other for long.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.evidence import DATA, MPICH, events, log

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]

JOB = ("requeue.sbatch", DATA, "--reproducible", "--batch-size", "64", "--progress", "none", "--no-report")
TWO = ["--ntasks=2"]
SHORT, LONG = 6.0, 40.0  # seconds of a run that is left alone; the long one must not end before its signal


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, root: Path) -> dict[str, tuple[int, str]]:
    """(number, digest of the run that was left alone) of the jobs that were stopped, by what stopped them."""
    trial = alone(cluster, root, "--epochs", "3")
    epoch = [line for line in trial if line["event"] == "epoch"][-1]
    rate = epoch["samples_per_second"] / 64
    short, long = (("--steps", str(round(seconds * rate))) for seconds in (SHORT, LONG))
    digest = alone(cluster, root, *short)[-1]["weights_sha256"]
    requeued = stopped(cluster, root, "scontrol", "requeue", steps=short)
    signalled = stopped(cluster, root, "scancel", "--signal=TERM", steps=short, **MPICH)
    for number in (requeued, signalled):
        cluster.ended(number, 120)
    limited = cluster.submit(root, *JOB, *long, options=[*TWO, "--time=1", "--signal=USR1@25"])
    cluster.ended(limited, 240)
    of_long = alone(cluster, root, *long)[-1]["weights_sha256"]
    return {"limit": (limited, of_long), "requeue": (requeued, digest), "signal": (signalled, digest)}


def alone(cluster: Cluster, root: Path, *words: str) -> list[dict]:
    """What a job tells that nobody stops."""
    number = cluster.submit(root, *JOB, *words, options=TWO)
    assert cluster.ended(number, 150)["JobState"] == "COMPLETED", log(root)
    return events(root, f"slurm-{number}")


def stopped(cluster: Cluster, root: Path, *command: str, steps: tuple[str, str], **settings: str) -> int:
    """Submit a job and stop it by this command once it trains; its number."""
    number = cluster.submit(root, *JOB, *steps, options=TWO, **settings)
    cluster.wait_for("first epoch", lambda: len(events(root, f"slurm-{number}")) > 2, 60)
    time.sleep(0.5)
    cluster.run(*command, str(number))
    return number


@pytest.mark.parametrize("stopped_by", ["limit", "requeue", "signal"])
def test_it_goes_on_from_the_queue_to_the_same_weights(cluster, root, jobs, stopped_by):
    number, digest = jobs[stopped_by]
    ended = cluster.job(number)
    assert ended["JobState"] == "COMPLETED", log(root)
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
