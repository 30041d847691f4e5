"""Steps that are not finite: skipped and counted, or the end of the run, and told with rank, layer and rows."""

import json
import platform

import numpy as np
import pytest

from tests.launch import launch
from tests.samples import spoil, write_image_set

ROW = 17


@pytest.fixture
def path(tmp_path):
    return spoil(write_image_set(tmp_path / "set.h5"), ROW)


def train(path, *options):
    out = path.parent / "run"
    job = launch(2, "-m", "mpi_parallel.train", "--data", path, "--out", out, "--epochs", "2", *options)
    return job, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_first_one_ends_the_run(path):
    job, events = train(path, "--merge", "flat")
    assert job.returncode == 3
    assert events[-1]["event"] == "end" and events[-1]["reason"] == "not-finite"
    for text in ("training went bad", f"on {platform.node()}: loss nan", f"row {ROW} of {path}:train/images"):
        assert text in job.stderr, text
    assert "whose standardised pixels are not finite" in job.stderr
    assert "gradient not finite in layer 2, 1, 0 of 0 to 2" in job.stderr
    assert job.stderr.count("rank ") == 1, "of both ranks one is to blame"


@pytest.mark.parametrize("merge", ["window", "exact"])
def test_some_are_skipped_and_counted(path, merge):
    job, events = train(path, "--merge", merge, "--max-bad-steps", "2", "--batch-size", "16")
    assert job.returncode == 0
    bad = [event for event in events if event["event"] == "bad-step"]
    assert [event["bad_steps"] for event in bad] == [1, 2], "that row comes once in each of two epochs"
    assert all(f"row {ROW} of" in place for event in bad for place in event["places"])
    assert all(np.isfinite(event["train_loss"]) for event in events if event["event"] == "epoch")
    assert events[-1]["reason"] == "finished"
    assert "skipped" in job.stderr
