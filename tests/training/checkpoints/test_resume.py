"""Whole runs that are left and taken up again, within this process."""

import json
import os
import signal

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from mpi_parallel.pictures.records import Gallery
from mpi_parallel.train import main
from mpi_parallel.training.checkpoints.checkpoint import CheckpointFile, read_checkpoint
from mpi_parallel.training.faults.signals import StopRequest
from tests.samples import images_and_labels, write_image_set

RANKS = [1, 2, 3, 4]
GIVEN = {"--batch-size": "16", "--epochs": "3", "--hidden": "8", "--progress": "none", "--merge": "flat"}


class Runs:
    """Runs in one folder, on 60 rows in steps of 16: 4 steps an epoch."""

    def __init__(self, folder):
        self.folder, self.world = folder, Communicator(MPI.COMM_WORLD)
        self.data = folder / f"set-{self.world.rank}.h5"  # each rank its own
        write_image_set(self.data, 60, 12, 20)

    def __call__(self, *options, name="run"):
        """Train; status and events."""
        given = [word for pair in GIVEN.items() if pair[0] not in options for word in pair]
        where = ["--data", str(self.data), "--out", str(self.folder / name)]
        where += [] if "--report" in options else ["--no-report"]
        status = main(self.world, [*where, *given, *map(str, options)])
        self.world.gather_text("")  # rank 0 has written everything
        return status, [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]

    def checkpoint(self, step, name="run"):
        return self.folder / name / "checkpoints" / f"step-{step:08d}.h5"

    def refused(self, *options, name="run"):
        """What the user is told."""
        with pytest.raises(InputError) as caught:
            self(*options, name=name)
        return str(caught.value)


@pytest.fixture
def train(shared_path):
    return Runs(shared_path)


def saved_steps(folder):
    return sorted(int(path.name[5:13]) for path in (folder / "checkpoints").glob("step-*.h5"))


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize(("merge", "step"), [("sharded", 6), ("window", 4), ("exact", 3)])
def test_a_run_taken_up_again_ends_as_one_never_left(train, step, merge):
    """From within an epoch, and from its last step."""
    options = ("--merge", merge, "--dropout", 0.2, "--optimizer", "adamw", "--checkpoint-every", step)
    _, whole = train(*options, "--keep", 9, name="whole")
    status, again = train(*options, "--resume", train.checkpoint(step, "whole"), name="again")
    assert status == 0
    assert again[1] == {
        "event": "resume", "step": step, "from": str(train.checkpoint(step, "whole")), "ranks": train.world.size,
    }  # fmt: skip
    assert again[-1]["weights_sha256"] == whole[-1]["weights_sha256"]
    epochs, before = ([event for event in events if event["event"] == "epoch"] for events in (again, whole))
    for one, other in zip(epochs, before[-len(epochs) :], strict=True):
        for key in ("epoch", "step", "samples", "train_loss", "train_accuracy", "validation_loss"):
            assert one[key] == other[key]


@pytest.mark.parallel([4])
@pytest.mark.parametrize(("layout", "optimizer"), [("--tensor 2", "momentum"), ("--pipe 2 --tensor 2", "lamb")])
def test_a_split_network_is_saved_whole_and_taken_up_on_any_grid(train, layout, optimizer):
    others = ["--hidden", "9", "7", "--clip-norm", "1", "--optimizer", optimizer]
    options = [*others, *layout.split()]
    _, whole = train(*options, "--checkpoint-every", 5, "--keep", 9, name="whole")
    _, again = train(*options, "--resume", train.checkpoint(5, "whole"), name="again")
    assert again[-1]["weights_sha256"] == whole[-1]["weights_sha256"]
    read = read_checkpoint(train.checkpoint(12, "whole"))
    assert [array.shape for array in read.weights.values()] == [(12, 9), (9,), (9, 7), (7,), (7, 3), (3,)]
    _, data_parallel = train(*others, "--resume", train.checkpoint(5, "whole"), name="other")
    assert data_parallel[-1]["test_loss"] == pytest.approx(whole[-1]["test_loss"], rel=1e-4)


@pytest.mark.parallel([1, 3])
def test_auto_goes_on_in_the_same_folder(train):
    status, first = train("--steps", 6, "--resume", "auto", "--checkpoint-every", "0")
    assert (status, [event["event"] for event in first].count("resume")) == (0, 0)  # nothing to go on from
    assert saved_steps(train.folder / "run") == [6]
    train.world.meet()
    with (train.folder / "run" / "metrics.jsonl").open("a") as file:
        if train.world.rank == 0:
            file.write('{"event": "epo')  # as a run that is killed may leave it
    train.world.meet()
    _, events = train("--resume", "auto")
    assert events[: len(first)] == first
    assert [event["event"] for event in events[len(first) :]][:2] == ["start", "resume"]
    _, whole = train(name="whole")
    assert events[-1]["weights_sha256"] == whole[-1]["weights_sha256"]
    assert events[-1]["step"] == 12


@pytest.mark.parallel([1, 2])
def test_auto_takes_the_one_before_where_the_newest_is_damaged(train, capsys):
    train("--steps", 9, "--checkpoint-every", 3)
    if train.world.rank == 0:
        flip_a_bit(train.checkpoint(9))
    train.world.meet()
    _, events = train("--resume", "auto")
    assert next(event for event in events if event["event"] == "resume")["step"] == 6
    told = "".join(train.world.gather_text(capsys.readouterr().err))
    assert "step-00000009.h5: damaged: weights/W0 is not what was written" in told
    assert "trying the one before" in told
    assert saved_steps(train.folder / "run") == [3, 6, 12]  # the damaged one counts no more
    assert (train.checkpoint(9).with_name("step-00000009.h5.left-out")).exists()


@pytest.mark.parallel([2])
def test_auto_does_not_start_anew_where_all_are_damaged(train):
    train("--steps", 6, "--checkpoint-every", 3)
    if train.world.rank == 0:
        for step in (3, 6):
            flip_a_bit(train.checkpoint(step))
    train.world.meet()
    assert "none of the 2 checkpoints" in train.refused("--resume", "auto")


def flip_a_bit(path):
    with CheckpointFile(path) as file:
        place = file.arrays["weights/W0"].offset + 5
    whole = bytearray(path.read_bytes())
    whole[place] ^= 4
    path.write_bytes(whole)


CHANGED = {
    "--seed": (1, "--seed is 1 here and 0 in the checkpoint"),
    "--batch-size": (8, "--batch-size is 8 here and 16"),
    "--shards": (32, "--shards is 32 here and 64"),
    "--hidden": (9, "the network is [12, 9, 3] here and [12, 8, 3]"),
    "--dropout": (0.5, "--dropout is 0.5 here and 0.0"),
    "--optimizer": ("sgd", "--optimizer is sgd here and adam"),
    "--lr": (0.1, "--lr is 0.1 here and 0.001"),
    "--holding": ("streaming", "--holding is streaming here and resident"),
    "--schedule": ("cosine", "--schedule is cosine here and constant"),
}


@pytest.mark.parallel([1, 2])
def test_another_training_is_refused_and_both_sides_are_named(train):
    train("--steps", 4)
    before = (train.folder / "run" / "metrics.jsonl").read_bytes()
    for option, (value, message) in CHANGED.items():
        told = train.refused("--resume", train.checkpoint(4), option, value, name=f"other{option}")
        assert str(train.checkpoint(4)) in told
        assert message in told
    assert (train.folder / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parallel([1, 2])
def test_what_does_not_change_the_sequence_may_be_changed(train):
    train("--steps", 4)
    changes = ["--merge", "sharded", "--epochs", "2", "--keep", "1", "--micro-batch", "3", "--early-stop", "5"]
    status, events = train("--resume", train.checkpoint(4), *changes, name="other")
    assert (status, events[-1]["step"]) == (0, 8)


@pytest.mark.parallel([1])
def test_the_number_of_steps_binds_where_the_learning_rate_goes_by_it(train):
    train("--steps", 4, "--schedule", "cosine")
    told = train.refused("--resume", train.checkpoint(4), "--schedule", "cosine", name="other")
    assert "is 12 here and 4 in the checkpoint" in told


@pytest.mark.parallel([1])
def test_reproducible_runs_go_on_with_the_same_arithmetic_only(train, monkeypatch):
    options = ("--reproducible", "--merge", "exact")
    train("--steps", 4, *options)
    told = train.refused("--resume", train.checkpoint(4), *options, "--threads", 2, name="other")
    assert "--reproducible: arithmetic is cpu, " in told
    assert "2 threads" in told
    status, _ = train("--resume", train.checkpoint(4), "--threads", 2, name="another")  # without the promise
    assert status == 0


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("holding", ["resident", "streaming"])
def test_other_data_are_refused(train, holding):
    train("--steps", 4, "--holding", holding)
    with h5py.File(train.data, "r+") as file:
        labels = images_and_labels(60, seed=0)[1]
        labels[41] = (labels[41] + 1) % 3
        file["train/labels"][:] = labels
    told = train.refused("--resume", "auto", "--holding", holding)
    assert "the training data is 60 rows of" in told
    assert told.count("SHA-256") == 2


@pytest.mark.parallel([1, 2, 3])
def test_a_streamed_run_goes_on_in_mid_epoch(train):
    _, whole = train("--holding", "streaming", "--checkpoint-every", 6, "--keep", 9, name="whole")
    _, again = train("--holding", "streaming", "--resume", train.checkpoint(6, "whole"), name="again")
    assert again[-1]["weights_sha256"] == whole[-1]["weights_sha256"]


@pytest.mark.parallel([1, 2])
def test_the_newest_are_kept_and_the_best(train):
    _, events = train("--lr", 0.05, "--epochs", 12, "--checkpoint-every", 4, "--keep", 2)
    assert saved_steps(train.folder / "run") == [44, 48]
    losses = {event["step"]: event["validation_loss"] for event in events if event["event"] == "epoch"}
    best = read_checkpoint(train.folder / "run" / "checkpoints" / "best.h5")
    assert best.facts["step"] == min(losses, key=losses.get)
    assert best.facts["patience"]["best"] == min(losses.values())
    names = {path.name for path in (train.folder / "run" / "checkpoints").iterdir()}
    assert names == {"best.h5", "step-00000044.h5", "step-00000048.h5"}


@pytest.mark.parallel([1, 2])
def test_every_so_many_seconds(train):
    _, events = train("--epochs", 300, "--checkpoint-every", "0.05s")
    times = [event for event in events if event["event"] == "checkpoint"]
    assert len(times) > 1 and times[0]["step"] < events[-1]["step"], "the one at the end is always written"
    assert all(event["seconds"] > 0 for event in times)
    assert read_checkpoint(times[-1]["path"]).facts["step"] == events[-1]["step"]


@pytest.mark.parallel([1])
def test_never(train, capsys):
    train("--steps", 4, "--checkpoint-every", "never", "--progress", "plain")
    assert not (train.folder / "run" / "checkpoints").exists()
    told = capsys.readouterr().out
    assert "finished after 4 steps" in told and "use it with" not in told, "there is nothing to use"


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("merge", ["flat", "window"])
def test_a_run_that_goes_bad_keeps_what_it_was_saving(train, monkeypatch, merge):
    """The checkpoint of the step before is under way then, and the best epoch's state is in memory alone."""
    forward, calls = Replica.run, []

    def unlucky(self, *arguments):
        forward(self, *arguments)
        calls.append(1)
        if len(calls) == 6 and train.world.rank == 0:
            self.store.gradients[3] = np.nan
            self.store.flag_bad()

    monkeypatch.setattr(Replica, "run", unlucky)
    status, events = train("--checkpoint-every", 5, "--merge", merge)
    assert (status, events[-1]["reason"], events[-1]["step"]) == (3, "not-finite", 5)
    assert saved_steps(train.folder / "run") == [5]
    assert read_checkpoint(train.folder / "run" / "checkpoints" / "best.h5").facts["step"] == 4


@pytest.mark.parallel([1, 2])
def test_what_to_start_from_is_not_looked_at_where_there_is_something_to_go_on_from(train):
    train("--steps", 3)
    status, events = train("--resume", "auto", "--start", train.folder / "gone")
    assert status == 0 and any(event["event"] == "resume" for event in events)


@pytest.mark.parallel([1, 3])
def test_a_run_whose_pictures_and_trace_cannot_be_written_has_ended_well(train, monkeypatch, capsys):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Gallery, "write", full)
    (train.folder / "run" / "trace.json.part").mkdir(parents=True, exist_ok=True)
    train.world.gather_text("")
    status, events = train("--report", "--trace", "--steps", 3)
    assert (status, events[-1]["event"], events[-1]["reason"]) == (0, "end", "finished")
    told = train.world.gather_text(capsys.readouterr().err)[0]
    assert "report.html could not be written" in told and "trace.json could not be written" in told


@pytest.mark.parallel([2])
def test_a_signal_leaves_a_checkpoint(train, monkeypatch):
    if train.world.rank == 1:
        asked, calls = StopRequest.before_step, []

        def unlucky(self, saving, ahead=0):
            calls.append(saving)
            if len(calls) == 6:
                os.kill(os.getpid(), signal.SIGUSR1)
            return asked(self, saving, ahead)

        monkeypatch.setattr(StopRequest, "before_step", unlucky)
    status, events = train()
    assert (status, events[-1]["reason"]) == (75, "signal")
    assert saved_steps(train.folder / "run") == [events[-1]["step"]]
    monkeypatch.undo()
    status, events = train("--resume", "auto")
    assert (status, events[-1]["reason"]) == (0, "finished")
    _, whole = train(name="whole")
    assert events[-1]["weights_sha256"] == whole[-1]["weights_sha256"]


@pytest.mark.parallel([2])
def test_a_time_limit_leaves_a_checkpoint(train):
    status, events = train("--epochs", 10**6, "--time-limit", f"{1e-3}s")
    assert (status, events[-1]["reason"], events[-1]["step"]) == (75, "time-limit", 1)
    assert saved_steps(train.folder / "run") == [1]


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("unlucky", [0, -1])
def test_what_cannot_be_written_is_told_and_the_old_ones_stay(train, monkeypatch, capsys, unlucky):
    put, calls = os.pwrite, []

    def full(file, data, offset):
        calls.append(offset)
        if len(calls) > (60 if train.world.size == 1 else 45):
            raise OSError(28, "No space left on device")
        return put(file, data, offset)

    if train.world.rank == unlucky % train.world.size:
        monkeypatch.setattr(os, "pwrite", full)
    status, events = train("--checkpoint-every", 3, "--keep", 9)
    failed = [event["step"] for event in events if event["event"] == "checkpoint-failed"]
    assert set(failed) | set(saved_steps(train.folder / "run")) == {3, 6, 9, 12}
    assert failed[-1] == 12
    assert saved_steps(train.folder / "run")
    for step in saved_steps(train.folder / "run"):
        read_checkpoint(train.checkpoint(step))
    assert not list((train.folder / "run" / "checkpoints").glob(".*"))
    told = "".join(train.world.gather_text(capsys.readouterr().err))
    assert "was not written" in told
    assert "where the run ended could not be saved" in told
    assert np.all(np.array(train.world.comm.allgather(status)) == 1)
