"""Runs that stream, started as a user starts them."""

import json

import h5py
import numpy as np
import pytest

from tests.launch import launch
from tests.samples import write_image_set


def events(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(path, out, ranks, *options):
    common = ["--batch-size", "32", "--hidden", "8", "--epochs", "2", "--window", "20K", "--progress", "none"]
    done = launch(ranks, "-m", "mpi_parallel.train", "--data", path, "--out", out, *common, *options)
    return done, events(out) if done.returncode == 0 else []


@pytest.fixture
def path(tmp_path):
    """An image set with chunks, and labels that can be learnt."""
    path = write_image_set(tmp_path / "set.h5", train=500, test=60)
    with h5py.File(path, "a") as file:
        images = file["train/images"][:]
        del file["train/images"]
        file.create_dataset("train/images", data=images, chunks=(9, *images.shape[1:]), compression="gzip")
    return path


def test_any_number_of_ranks_takes_the_same_steps(path, tmp_path):
    augmented = ["--shift", "1", "--flip", "--erase", "0.5", "--dropout", "0.2"]
    for name, options in (("plain", []), ("augmented", augmented)):
        losses = []
        for ranks in (None, 3):
            done, told = train(path, tmp_path / f"{name}-{ranks}", ranks, "--holding", "streaming", *options)
            assert done.returncode == 0, done.stderr
            assert told[0]["holding"] == "streaming"
            epochs = [event for event in told if event["event"] == "epoch"]
            assert 0 < epochs[0]["seconds_to_first_step"] < told[-1]["seconds"]
            losses.append([event["train_loss"] for event in epochs] + [told[-1]["test_loss"]])
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_memory_decides(path, tmp_path):
    for memory, holding in (("6K", "streaming"), ("1M", "resident")):
        done, told = train(path, tmp_path / memory, None, "--memory", memory, "--window", "2K", "--shards", "4")
        assert done.returncode == 0, done.stderr
        assert told[0]["holding"] == holding


def test_too_little_memory_is_the_users_to_mend(path, tmp_path):
    done, _ = train(path, tmp_path / "out", 2, "--memory", "1K")
    assert done.returncode == 2
    assert "raise --memory, lower --window" in done.stderr and done.stderr.count("error") == 1


def test_the_benchmark_prints_what_it_measures_and_leaves_nothing(tmp_path):
    (tmp_path / "scratch").mkdir()
    figures = tmp_path / "figures.json"
    size = ["--size", "4M", "--memory", "16M", "--window", "4M", "--hidden", "4", "--batch-size", "2048"]
    size += ["--table-rows", "200"]
    done = launch(
        2, "-m", "mpi_parallel.benchmark", "data", "--folder", tmp_path / "scratch", *size, "--to", figures
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("resident", "streaming", "first step", "reading", "computing", "memory", "converting"):
        assert word in done.stdout
    told = json.loads(figures.read_text())
    assert told["streaming"]["samples"] == 4 * 2**20 // 784
    assert told["peak_bytes"] > 2**20 and told["share_of_the_limit"] > 0
    assert told["converting"]["rows"] == 200 and told["converting"]["all_ranks_seconds"] > 0
    assert list((tmp_path / "scratch").iterdir()) == []
