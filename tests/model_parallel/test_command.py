"""`train --tensor T --pipe P` as a user runs it: the same result on every grid, and refusals that name both sides."""

import json

import pytest

from tests.launch import launch
from tests.samples import write_image_set

TRAIN = ("-m", "mpi_parallel.train")
FIXED = (
    "--hidden",
    "16",
    "12",
    "--batch-size",
    "32",
    "--epochs",
    "2",
    "--progress",
    "none",
    "--no-report",
    "--dropout",
    "0.1",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_image_set(tmp_path_factory.mktemp("data") / "set.h5", train=120, validation=30, test=40)


def train(data, out, ranks, *words):
    """The start and the end event of a run, and its epochs'."""
    done = launch(ranks, *TRAIN, "--data", data, "--out", out, *FIXED, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    start, *epochs, end = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    return start, epochs, end


@pytest.mark.parametrize(
    ("ranks", "words", "grid"),
    [
        (2, ("--tensor", "2"), (1, 1, 2)),
        (2, ("--pipe", "2", "--pipe-schedule", "gpipe"), (1, 2, 1)),
        (4, ("--tensor", "2", "--pipe", "2", "--merge", "window"), (1, 2, 2)),
    ],
)
def test_a_grid_tells_what_one_rank_tells(data, tmp_path, ranks, words, grid):
    _, epochs, end = train(data, tmp_path / "alone", 1)
    start, ours, ours_end = train(data, tmp_path / "grid", ranks, *words)
    assert start["grid"] == dict(zip(("data", "pipe", "tensor"), grid, strict=True))
    assert start["parameters"] == 12 * 16 + 16 + 16 * 12 + 12 + 12 * 3 + 3
    for one, other in zip([*epochs, end], [*ours, ours_end], strict=True):
        for name in ("train_loss", "validation_loss", "test_loss"):
            assert one.get(name) == (pytest.approx(other[name], rel=1e-5) if name in other else None)
        for name in ("step", "samples", "train_accuracy", "validation_accuracy", "test_accuracy", "reason"):
            assert one.get(name) == other.get(name)
    assert not list((tmp_path / "grid").glob("rank-*.log")), "some rank warned of something"


def test_the_weights_of_a_reproducible_pipeline_are_those_of_one_rank(data, tmp_path):
    ends = [train(data, tmp_path / f"{ranks}", ranks, "--reproducible", "--pipe", str(ranks))[2] for ranks in (1, 3)]
    assert ends[0]["weights_sha256"] == ends[1]["weights_sha256"]
    assert ends[0]["test_loss"] == ends[1]["test_loss"]


@pytest.mark.parametrize(
    ("ranks", "words", "complaint"),
    [
        (3, ("--tensor", "2"), "3 ranks do not divide into 1 stages (--pipe) x 2 slices (--tensor)"),
        (4, ("--pipe", "4"), "--pipe 4 wants as many stages, but the network has 3 layers"),
        (4, ("--tensor", "4"), "--tensor 4 cuts layer 2 (12 x 3) into slices of its 3 outputs"),
        (1, ("--tensor", "0"), "--tensor 0: must be at least 1"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_with_both_sides(data, tmp_path, ranks, words, complaint):
    done = launch(ranks, *TRAIN, "--data", data, "--out", tmp_path / "run", *FIXED, *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_stages_that_share_a_layer_goes_on_elsewhere(data, tmp_path):
    words = ("--hidden", "700", "700", "--steps")  # of which the middle layer is most of the work
    _, _, whole = train(data, tmp_path / "whole", 1, *words, "6")
    train(data, tmp_path / "run", 2, *words, "3", "--pipe", "2")
    *_, end = _lines(data, tmp_path / "run", 1, *words, "6", "--resume", "auto")
    assert end["step"] == whole["step"] == 6
    assert end["test_loss"] == pytest.approx(whole["test_loss"], rel=1e-4)
    *_, end = _lines(data, tmp_path / "run", 2, *words, "8", "--resume", "auto", "--pipe", "2")
    assert end["step"] == 8


def _lines(data, out, ranks, *words):
    done = launch(ranks, *TRAIN, "--data", data, "--out", out, *FIXED, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
