"""A run and what follows from it: its folder serves evaluate, predict, export, --start and Classifier alike."""

import json

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel import Classifier, evaluate, export, predict
from mpi_parallel.mpi.communicator import Communicator
from tests.launch import launch
from tests.once import once
from tests.samples import write_image_set
from tests.trained import NAMES, some_network, write_network

QUICK = ("-m", "mpi_parallel.train", "--progress", "none", "--no-report")


def run(command, *arguments):
    assert command.main(Communicator(MPI.COMM_SELF), [str(word) for word in arguments]) == 0


def end_of(out):
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set.h5"
    return write_image_set(path, train=120, validation=30, test=40, attributes={"classes": NAMES})


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    """The folder of a run on 2 ranks."""
    out = tmp_path_factory.mktemp("runs") / "run"
    ended = launch(2, *QUICK, "--data", data, "--out", out, "--epochs", "4", "--batch-size", "32", "--hidden", "8", "7")
    assert (ended.returncode, ended.stderr) == (0, "")
    return out


def test_evaluate_tells_what_the_run_told(data, out, tmp_path):
    newest = max((out / "checkpoints").glob("step-*.h5"))
    run(evaluate, "--checkpoint", newest, "--data", data, "--json", tmp_path / "told.json")
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["accuracy"] == end_of(out)["test_accuracy"]
    assert told["loss"] == pytest.approx(end_of(out)["test_loss"], abs=1e-5)
    assert told["weights_sha256"] == end_of(out)["weights_sha256"]
    assert [row["class"] for row in told["per_class"]] == list(NAMES)


def test_the_folder_stands_for_its_best_checkpoint(data, out, tmp_path):
    for name in ("a", "b"):
        where = out if name == "a" else out / "checkpoints" / "best.h5"
        run(evaluate, "--checkpoint", where, "--data", data, "--json", tmp_path / name)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_everything_predicts_alike(data, out, tmp_path):
    run(predict, "--checkpoint", out, "--data", data, "--to", tmp_path / "p.h5")
    run(export, "--checkpoint", out, "--to", tmp_path / "m.safetensors")
    run(export, "--checkpoint", out, "--to", tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "p.h5") as file, h5py.File(data) as source:
        probabilities, images = file["probabilities"][:], source["test/images"][:]
    for path in (out, tmp_path / "m.safetensors", tmp_path / "m.weights.h5"):
        loaded = Classifier.load(path)
        assert np.abs(loaded.predict_proba(images) - probabilities).max() < 1e-6
        assert loaded.class_names_ == NAMES


@once
@pytest.mark.parametrize("grid", [("--pipe", "2"), ("--tensor", "2")], ids=["pipe", "tensor"])
def test_a_run_starts_from_exported_weights_on_any_grid(data, out, tmp_path, grid):
    newest = max((out / "checkpoints").glob("step-*.h5"))
    run(export, "--checkpoint", newest, "--to", tmp_path / "m.weights.h5")
    start = ("--hidden", "8", "7", "--start", tmp_path / "m.weights.h5", "--epochs", "0")
    ended = launch(2, *QUICK, "--data", data, "--out", tmp_path / "run", *start, *grid)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert end_of(tmp_path / "run")["weights_sha256"] == end_of(out)["weights_sha256"]


def test_weights_of_another_network_are_refused(data, tmp_path):
    path = write_network(tmp_path / "other.weights.h5", some_network((12, 9, 3)))
    ended = launch(None, *QUICK, "--data", data, "--out", tmp_path / "run", "--start", path)
    assert ended.returncode == 2
    assert "the network there is 12 - 9 - 3 and here 12 - 128 - 64 - 3; --hidden 9 makes" in ended.stderr


@once
def test_weights_of_another_standardisation_are_told(data, tmp_path):
    path = write_network(tmp_path / "other.weights.h5", some_network((12, 9, 3)))
    start = ("--start", path, "--hidden", "9", "--epochs", "0")
    ended = launch(None, *QUICK, "--data", data, "--out", tmp_path / "run", *start)
    assert ended.returncode == 0
    assert "was trained on images that were standardised in another way than these" in ended.stderr
