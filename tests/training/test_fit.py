"""Whole runs within this process: what they tell, and why they end. test_cli.py has them as a user starts them."""

import hashlib
import json
import os
import signal
import threading
import time

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel import train as program
from mpi_parallel.device import Host
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.signals import StopAsked
from mpi_parallel.train import main
from mpi_parallel.training.run import Patience
from tests.samples import write_image_set

RANKS = [1, 2, 3]


@pytest.fixture
def train(shared_path):
    """Run a training on all ranks, on 60 rows in steps of 16; its status and its events."""

    def run(*options, rows=60, validation=12, test=20, name="run"):
        world = Communicator(MPI.COMM_WORLD)
        path = write_image_set(shared_path / f"set-{world.rank}.h5", rows, validation, test)  # each rank its own
        out = shared_path / name
        given = {"--batch-size": "16", "--epochs": "2", "--hidden": "8", "--progress": "none", "--merge": "flat"}
        given |= {"--checkpoint-every": "never"}
        options = [word for pair in given.items() if pair[0] not in options for word in pair] + [*map(str, options)]
        options += [] if "--report" in options else ["--no-report"]
        status = main(world, ["--data", str(path), "--out", str(out), *options])
        world.gather_text("")  # rank 0 has written everything
        return status, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]

    return run


def kinds(events):
    return [event["event"] for event in events]


@pytest.mark.parallel(RANKS)
def test_events_of_a_run(train):
    status, (start, *epochs, end) = train("--epochs", 3)
    assert status == 0
    assert (start["event"], kinds(epochs), end["event"]) == ("start", ["epoch"] * 3, "end")
    assert [event["epoch"] for event in epochs] == [1, 2, 3]
    assert [event["step"] for event in epochs] == [4, 8, 12]
    assert [event["samples"] for event in epochs] == [60, 120, 180]
    assert (end["step"], end["epochs"], end["reason"]) == (12, 3, "finished")
    assert epochs[0]["train_loss"] > epochs[-1]["train_loss"]
    for event in epochs:
        assert event["seconds"] > 0
        assert event["samples_per_second"] == pytest.approx(60 / event["seconds"])
        phases = event["seconds_by_phase"].values()
        assert min(phases) >= 0
        if MPI.COMM_WORLD.size == 1:  # they are the ranks' means, and a rank that starts an epoch late has less of it
            assert sum(phases) == pytest.approx(event["seconds"])
        assert 0 <= event["slowest_rank"] < MPI.COMM_WORLD.size
        assert event["lr"] == 1e-3
        assert event["validation_loss"] > 0
        assert event["validation_accuracy"] in [n / 12 for n in range(13)]
    assert end["test_accuracy"] in [n / 20 for n in range(21)]


@pytest.mark.parallel(RANKS)
def test_the_same_run_on_the_same_ranks_is_the_same_to_the_bit(train):
    (_, first), (_, second) = (train("--dropout", 0.2, name=name) for name in ("first", "second"))
    assert first[-1]["weights_sha256"] == second[-1]["weights_sha256"]
    for one, other in zip(first[1:], second[1:], strict=True):
        for key in ("train_loss", "train_accuracy", "validation_loss", "test_loss"):
            assert one.get(key) == other.get(key)
    _, seeded = train("--dropout", 0.2, "--seed", 1, name="third")
    assert seeded[-1]["weights_sha256"] != first[-1]["weights_sha256"]


@pytest.mark.parallel(RANKS)
def test_the_configuration_that_a_run_leaves_reproduces_it(train, shared_path):
    _, first = train("--optimizer", "momentum", "--lr", 0.01, "--schedule", "cosine", "--warmup", 3, "--hidden", 5, 4)
    # train gives some options itself, and flags win: those that it gives are the same ones
    status, second = train("--config", shared_path / "run" / "config.toml", "--hidden", 5, 4, name="again")
    assert status == 0
    assert second[-1]["weights_sha256"] == first[-1]["weights_sha256"]
    assert second[0]["config"]["optimizer"] == first[0]["config"]["optimizer"]


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize(("steps", "epochs"), [(3, [3]), (4, [4]), (9, [4, 8, 9])])
def test_steps(train, steps, epochs):
    status, events = train("--steps", steps)
    assert status == 0
    assert [event["step"] for event in events[1:]] == [*epochs, steps]
    assert (events[-1]["event"], events[-1]["reason"]) == ("end", "finished")


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("option", ["--epochs", "--steps"])
def test_no_steps_at_all_evaluate_the_initial_weights(train, option):
    status, events = train(option, 0, "--seed", 7)
    assert status == 0
    assert kinds(events) == ["start", "end"]
    assert events[-1]["step"] == events[-1]["epochs"] == 0
    assert events[-1]["test_loss"] > 0
    assert events[-1]["weights_sha256"] == digest(MLP(Host(), (12, 8, 3), seed=7))


def digest(model):
    """The definition in words: whole float32 weights, layer by layer, W (in, out) row-major then b, little-endian."""
    parameters, digest = model.store.parameters, hashlib.sha256()
    for layer in range(model.depth):
        for name in (f"W{layer}", f"b{layer}"):
            digest.update(parameters[name].value.astype("<f4").tobytes(order="C"))
    return digest.hexdigest()


@pytest.mark.parallel(RANKS)
def test_target_accuracy(train):
    status, events = train("--epochs", 500, "--lr", 0.01, "--target-accuracy", 0.9)
    assert status == 0
    assert events[-1]["reason"] == "target"
    *before, last = [event["validation_accuracy"] for event in events[1:-1]]
    assert last >= 0.9
    assert all(accuracy < 0.9 for accuracy in before)


@pytest.mark.parallel(RANKS)
def test_target_accuracy_of_the_training_rows_where_there_is_no_validation(train):
    _, events = train("--epochs", 500, "--lr", 0.01, "--target-accuracy", 0.9, validation=None, test=None)
    assert events[-1]["reason"] == "target"
    assert events[-2]["train_accuracy"] >= 0.9
    assert events[-2]["validation_accuracy"] is events[-1]["test_accuracy"] is None


@pytest.mark.parallel(RANKS)
def test_early_stop(train, shared_path):
    status, events = train("--epochs", 500, "--lr", 0.03, "--early-stop", 3, "--checkpoint-every", 0)
    assert status == 0
    assert events[-1]["reason"] == "early-stop"
    losses = [event["validation_loss"] for event in events if event["event"] == "epoch"]
    told = (shared_path / "run" / "log.txt").read_text()
    assert f"best        best.h5, of validation loss {min(losses):.4f}, 3 epochs before the last" in told
    assert np.argmin(losses) == len(losses) - 4


@pytest.mark.parallel(RANKS)
def test_training_that_diverges(train, capsys):
    status, events = train("--epochs", 500, "--lr", 1e30)
    assert status == 3
    assert (events[-1]["event"], events[-1]["reason"]) == ("end", "not-finite")
    assert events[-1]["test_loss"] is None
    told = "".join(Communicator(MPI.COMM_WORLD).gather_text(capsys.readouterr().err))
    assert told.count("training went bad") == 1


@pytest.mark.parallel(RANKS)
def test_the_last_step_may_go_bad_too(train):
    status, events = train("--steps", 1, "--lr", 1e30, validation=None)
    assert status == 3
    assert (events[-1]["reason"], events[-1]["test_loss"]) == ("not-finite", None)


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(train, shared_path, number):
    last = MPI.COMM_WORLD.size - 1
    if MPI.COMM_WORLD.rank == last:
        threading.Thread(target=signal_later, args=(shared_path / "run" / "metrics.jsonl", number), daemon=True).start()
    status, events = train("--epochs", 10**6, "--checkpoint-every", "1h")
    assert status == 75
    assert (events[-1]["event"], events[-1]["reason"]) == ("end", "signal")
    assert events[-1]["step"] > 0
    assert events[-1]["test_loss"] is None
    out = shared_path / "run"
    assert f"--config {out}/config.toml --out {out} --resume auto" in (out / "log.txt").read_text()
    statuses = MPI.COMM_WORLD.allgather(status)
    assert statuses == [75] * (last + 1)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("place", ["open_image_set", "TrainingRows", "open_merger"])
def test_who_is_asked_to_stop_before_there_is_a_run_leaves(train, place, monkeypatch, shared_path):
    monkeypatch.setattr(program, place, asked_to_stop(getattr(program, place)))
    with pytest.raises(StopAsked, match="SIGTERM"):
        train()
    assert not (shared_path / "run").exists()


def asked_to_stop(verb):
    """The verb, in which the last rank gets a signal."""

    def asked(*arguments, **named):
        if MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return verb(*arguments, **named)

    return asked


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("place", ["find", "announce"])
def test_who_is_asked_to_stop_before_training_begins_takes_one_step(train, place, monkeypatch):
    monkeypatch.setattr(program, place, asked_to_stop(getattr(program, place)))
    status, events = train("--epochs", 10**6, "--checkpoint-every", "1h")
    assert status == 75
    assert (events[-1]["reason"], events[-1]["step"]) == ("signal", 1)
    monkeypatch.undo()
    status, events = train("--steps", 3, "--checkpoint-every", "1h", "--resume", "auto")
    assert (status, events[-1]["step"]) == (0, 3)


def signal_later(metrics, number):
    """Send this process a signal once the first epoch has been told: by then the run listens."""
    while not metrics.exists() or '"epoch"' not in metrics.read_text():
        time.sleep(0.02)
    os.kill(os.getpid(), number)


@pytest.mark.parallel(RANKS)
def test_a_rank_without_rows_and_a_batch_beyond_all_rows(train):
    status, events = train("--batch-size", 1000, "--shards", 1, rows=5, validation=1, test=2)
    assert status == 0
    assert [event["samples"] for event in events[1:-1]] == [5, 10]


def test_patience():
    patience = Patience(2)
    assert [patience.lost(loss) for loss in (3.0, 2.0, 2.5, 1.0, 1.0, 1.5)] == [False, False, False, False, False, True]


def test_patience_without_end():
    patience = Patience(None)
    assert not any(patience.lost(loss) for loss in range(100))


def test_patience_is_lost_on_what_is_no_number():
    patience = Patience(2)
    assert [patience.lost(loss) for loss in (3.0, float("nan"), float("nan"))] == [False, False, True]
