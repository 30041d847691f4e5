"""Jobs that Slurm stops in mid-epoch go on from there: the last weights are those of a run that was left alone.

Slurm looks at time limits of whole minutes every half a minute, so all jobs run at the same time.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.evidence import DATA, MPICH, events, log

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]

JOB = ("requeue.sbatch", DATA, "--reproducible", "--batch-size", "64", "--progress", "none")
TWO = ["--ntasks=2"]
ALONE = 8.0  # seconds of the run when it has the machine for itself: the limited one must not end within its minute


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, root: Path) -> dict[str, int]:
    """The job that is left alone, and those to be stopped, by what stops them."""
    trial = cluster.submit(root, *JOB, "--epochs", "3", options=TWO)
    assert cluster.ended(trial)["JobState"] == "COMPLETED", log(root)
    epoch = events(root, f"slurm-{trial}")[-2]
    steps = str(round(ALONE * epoch["step"] / 3 / epoch["seconds"]))
    limited = ["--time=1", "--signal=USR1@10"]
    return {
        "nothing": cluster.submit(root, *JOB, "--steps", steps, options=TWO),
        "limit": cluster.submit(root, *JOB, "--steps", steps, options=[*TWO, *limited]),
        "requeue": cluster.submit(root, *JOB, "--steps", steps, options=TWO),
        "signal": cluster.submit(root, *JOB, "--steps", steps, options=TWO, **MPICH),
    }


@pytest.fixture(scope="module")
def ends(cluster: Cluster, root: Path, jobs: dict[str, int]) -> dict[str, dict[str, str]]:
    """Stop each once it trains; what Slurm tells of each when all have come to their ends."""
    for command in (["scontrol", "requeue"], ["scancel", "--signal=TERM"]):
        number = jobs["signal" if "--signal=TERM" in command else "requeue"]
        cluster.wait_for("first epoch", lambda run=f"slurm-{number}": len(events(root, run)) > 2, 150)
        time.sleep(0.5)
        cluster.run(*command, str(number))
    return {name: cluster.ended(number, 300) for name, number in jobs.items()}


@pytest.mark.parametrize("stopped_by", ["limit", "requeue", "signal"])
def test_it_goes_on_from_the_queue_to_the_same_weights(root, jobs, ends, stopped_by):
    assert ends[stopped_by]["JobState"] == "COMPLETED", log(root)
    assert int(ends[stopped_by]["Restarts"]) >= 1
    lines = events(root, f"slurm-{jobs[stopped_by]}")
    stops = [line for line in lines if line["event"] == "end" and line["reason"] in ("signal", "time-limit")]
    assert len(stops) == int(ends[stopped_by]["Restarts"])
    resumed = [line["step"] for line in lines if line["event"] == "resume"]
    assert resumed == [line["step"] for line in stops] and resumed[0] > 0, "a step was lost, or taken twice"
    undisturbed = events(root, f"slurm-{jobs['nothing']}")[-1]
    assert lines[-1]["weights_sha256"] == undisturbed["weights_sha256"]


def test_they_were_stopped_in_mid_epoch(root, jobs, ends):
    lines = [line for name in ("limit", "requeue", "signal") for line in events(root, f"slurm-{jobs[name]}")]
    an_epoch = next(line["step"] for line in lines if line["event"] == "epoch")
    assert any(line["step"] % an_epoch for line in lines if line["event"] == "resume")
