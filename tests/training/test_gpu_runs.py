"""Whole runs on an emulated GPU, which works at once or only when it is waited for: stops, bad steps, restarts."""

import os
import signal

import h5py
import numpy as np
import pytest

from mpi_parallel import Classifier
from mpi_parallel.device import cuda, explain
from mpi_parallel.training import fit
from mpi_parallel.training.captured import AHEAD
from mpi_parallel.training.checkpoints.checkpoint import read_checkpoint
from tests.device.emulated import installed
from tests.device.fake_lt import FakeLt
from tests.device.shim import compiler
from tests.device.streams import CUDARuntimeError
from tests.once import once
from tests.samples import images_and_labels, spoil, write_image_set
from tests.training.checkpoints.test_resume import Runs, saved_steps

pytestmark = once


@pytest.fixture
def gpu(monkeypatch):
    """What makes `--device cuda` take an emulated one; 4 steps an epoch, of which the last is short."""

    def plug_in(late, moody=False, times=()):
        compiler()
        monkeypatch.setattr(cuda.Cuda, "time", lambda self, replays: list(times))
        monkeypatch.setattr(cuda.Cuda, "measures", property(lambda self: bool(times), lambda *_: None), raising=False)
        cupy = installed(monkeypatch, late=late)
        monkeypatch.setattr(cuda, "load", lambda find, major: FakeLt(cupy.do, moody=moody))
        return cupy

    return plug_in


@pytest.fixture
def train(tmp_path):
    runs = Runs(tmp_path)
    run = lambda *options, **how: runs("--device", "cuda", *options, **how)  # noqa: E731
    run.runs = runs
    return run


def told(events, kind="epoch"):
    """Without the times."""
    keys = "epoch step samples train_loss train_accuracy validation_loss loss_scale skipped_steps lr".split()
    return [{key: event.get(key) for key in keys} for event in events if event["event"] == kind]


def test_what_a_run_does_depends_on_no_pace(train, gpu):
    """Neither the GPU's nor the host's; one epoch is a step short of two graphs, and checkpoints come within epochs."""
    options = ("--precision", "float16", "--dropout", 0.1, "--schedule", "cosine", "--checkpoint-every", 5, "--keep", 9)
    ends = []
    for name, late, more in [("prompt", False, ()), ("late", True, ()), ("eager", True, ("--no-graphs",))]:
        cupy = gpu(late)
        status, events = train(*options, *more, name=name)
        assert status == 0
        assert any(event[0] == "replay" for event in cupy.events) == (not more)
        ends.append((told(events), events[-1]["weights_sha256"], saved_steps(train.runs.folder / name)))
    assert ends[1:] == ends[:1] * 2
    assert ends[0][2] == [5, 10, 12]
    _, again = train(*options, "--resume", train.runs.checkpoint(5, "late"), name="again")
    assert again[-1]["weights_sha256"] == ends[0][1]
    assert told(again) == ends[0][0][1:]


@pytest.mark.parametrize("holding", ["resident", "streaming"])
def test_images_that_change_with_the_epoch_are_replayed(train, gpu, holding):
    """Each epoch draws anew: what it does comes from the keys of the rows, which the device deals itself."""
    options = ("--shift", 1, "--flip", "--erase", 0.5, "--precision", "bfloat16", "--holding", holding)
    ends = []
    for name, more in [("late", ()), ("eager", ("--no-graphs",)), ("plain", ("--shift", 0, "--no-flip", "--erase", 0))]:
        cupy = gpu(True)
        status, events = train(*options, *more, name=name)
        assert status == 0
        assert any(event[0] == "replay" for event in cupy.events) == (name != "eager")
        ends.append((told(events), events[-1]["weights_sha256"]))
    assert ends[0] == ends[1] != ends[2]


def losses(events):
    return [event["train_loss"] for event in events if event["event"] == "epoch"] + [events[-1]["test_loss"]]


@pytest.mark.parametrize("options", [("--batch-size", 7, "--micro-batch", 3), ("--batch-size", 60), ()], ids=str)
def test_rows_that_stream_are_replayed_as_those_that_stay(train, gpu, options):
    """Through a ring that is used again and again, also by validation and test, with batches of many lengths."""
    options = (*options, "--holding", "streaming", "--shards", 7, "--window", "1K", "--dropout", 0.2, "--epochs", 4)
    ends = []
    for late, more in [(True, ()), (False, ()), (True, ("--no-graphs",))]:
        cupy = gpu(late)
        status, events = train(*options, *more, name=f"{late}-{len(more)}")
        assert status == 0
        assert any(event[0] == "replay" for event in cupy.events) == (not more)
        ends.append((told(events), events[-1]["weights_sha256"]))
    assert ends[1:] == ends[:1] * 2
    _, cores = train.runs("--device", "cpu", *options, name="cores")
    assert losses(cores) == pytest.approx(losses(events), rel=1e-3)


@pytest.mark.parametrize(("dtype", "holding"), [("i4", "resident"), ("f2", "streaming")])
def test_images_of_every_type_are_replayed(train, gpu, dtype, holding):
    """Those that no kernel reads are kept as float32."""
    with h5py.File(train.runs.data, "a") as file:
        for split in ("train", "validation", "test"):
            images = file[f"{split}/images"][:]
            del file[f"{split}/images"]
            file[f"{split}/images"] = images.astype(dtype)
    cupy = gpu(True)
    status, events = train("--flip", "--holding", holding)
    assert status == 0
    assert any(event[0] == "replay" for event in cupy.events)
    _, cores = train.runs("--device", "cpu", "--flip", "--holding", holding, name="cores")
    assert losses(cores) == pytest.approx(losses(events), rel=1e-3)


@pytest.mark.parametrize("merge", ["exact", "sharded"])
def test_reproducible_runs_do_not_depend_on_where_arrays_lie(train, gpu, merge):
    """Nor on what an algorithm was measured to take: those of a run that goes on are those of one never left."""
    options = ("--reproducible", "--groups", 4, "--merge", merge, "--hidden", 64, 64, "--clip-norm", 0.5, "--flip")
    options = (*options, "--batch-size", 14)  # of which groups have 3 or 4 rows, and none of the last 4 or 2
    ends = []
    for late in (False, True):
        cupy = gpu(late, moody=True)
        graphs = () if late else ("--no-graphs",)
        status, whole = train(*options, *graphs, "--checkpoint-every", 5, "--keep", 9, name=f"whole-{late}")
        assert status == 0
        assert any(event[0] == "replay" for event in cupy.events) == late
        gpu(not late, moody=True)
        _, again = train(*options, "--resume", train.runs.checkpoint(5, f"whole-{late}"), name=f"again-{late}")
        ends += [whole[-1]["weights_sha256"], again[-1]["weights_sha256"]]
    assert len(set(ends)) == 1
    _, cores = train.runs("--device", "cpu", *options, name="cores")
    assert losses(cores) == pytest.approx(losses(whole), rel=1e-3)


@pytest.mark.parametrize("options", [("--batch-size", 60), ("--steps", 6), ("--check-replicas", 3)], ids=str)
def test_epochs_and_runs_of_any_length(train, gpu, options):
    """Epochs of one step; a run that ends within one; copies that are compared on the way."""
    digests = []
    for late in (False, True):
        gpu(late)
        status, events = train(*options, name=f"run-{late}")
        assert status == 0
        digests.append((told(events), events[-1]["weights_sha256"]))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("late", [False, True])
def test_a_signal_stops_behind_the_steps_that_are_under_way_and_the_run_goes_on_from_there(
    train, gpu, monkeypatch, late
):
    gpu(late)
    _, whole = train("--epochs", 6, name="whole")
    before, taken = fit.PULSE.take, []

    def take(step):
        taken.append(step)
        if step == 9:
            os.kill(os.getpid(), signal.SIGUSR1)
        before(step)

    monkeypatch.setattr(fit.PULSE, "take", take)
    status, events = train("--epochs", 6)
    assert (status, events[-1]["reason"]) == (75, "signal")
    assert events[-1]["step"] == 9 + AHEAD == taken[-1]
    assert saved_steps(train.runs.folder / "run")[-1] == 9 + AHEAD
    _, again = train("--epochs", 6, "--resume", "auto")
    assert again[-1]["weights_sha256"] == whole[-1]["weights_sha256"]


def test_a_checkpoint_that_is_due_holds_the_state_of_the_step_it_names(train, gpu):
    gpu(True)
    options = ("--epochs", 5, "--keep", 20, "--checkpoint-every")
    _, whole = train(*options, 1, name="whole")
    _, timed = train(*options, "0.001s", name="timed")  # as often as it can
    steps = saved_steps(train.runs.folder / "timed")
    assert len(steps) >= 2
    for step in steps:
        ours, theirs = (read_checkpoint(train.runs.checkpoint(step, name)) for name in ("timed", "whole"))
        for name, array in theirs.weights.items():
            assert (ours.weights[name] == array).all()
    assert timed[-1]["weights_sha256"] == whole[-1]["weights_sha256"]


@pytest.mark.parametrize(("allowed", "precision"), [(0, "float32"), (1, "bfloat16"), (9, "float16")])
@pytest.mark.parametrize("holding", ["resident", "streaming"])
def test_bad_steps_are_counted_and_looked_into_as_where_nothing_runs_ahead(
    train, gpu, monkeypatch, allowed, precision, holding
):
    ends = []
    for ahead in (0, AHEAD):
        monkeypatch.setattr("mpi_parallel.training.pacing.AHEAD", ahead)
        gpu(True)
        spoil(write_image_set(train.runs.data, 60, 12, 20), 17)
        status, events = train(
            "--precision", precision, "--max-bad-steps", allowed, "--holding", holding, name=f"run-{ahead}"
        )
        bad = [(event["step"], event["places"]) for event in events if event["event"] == "bad-step"]
        ends.append((status, bad, told(events), events[-1]["step"], events[-1]["weights_sha256"]))
        for text in ("row 17 of", "whose standardised pixels are not finite")[: 2 * (holding == "resident")]:
            assert all(text in places[0] for _, places in bad)
    assert ends[0] == ends[1]
    assert len(ends[0][1]) == min(allowed + 1, 3)
    assert ends[0][0] == (3 if allowed < 3 else 0)


@pytest.mark.parametrize("late", [False, True])
def test_a_run_whose_gpu_is_lost_goes_on_from_its_last_checkpoint(train, gpu, late):
    gpu(late)
    options = ("--checkpoint-every", 2, "--epochs", 6)
    _, whole = train(*options, name="whole")
    cupy = gpu(late)
    do, left = cupy.do, iter(range(9))  # steps

    def lost(event, work, stream=None):
        def counted():
            if event == ("launch", "deal") and next(left, None) is None:
                raise CUDARuntimeError("cudaErrorECCUncorrectable: uncorrectable ECC error encountered")
            work()

        do(event, counted, stream)

    cupy.do = lost
    with pytest.raises(CUDARuntimeError) as caught:
        train(*options)
    assert "start again with --resume auto" in explain(caught.value)
    gpu(late)
    _, again = train(*options, "--resume", "auto")
    (resumed,) = [event["step"] for event in again if event["event"] == "resume"]
    assert 0 < resumed < again[-1]["step"]
    assert again[-1]["weights_sha256"] == whole[-1]["weights_sha256"]


def test_a_run_whose_network_is_small_enough_to_be_passed_at_once(train, gpu):
    """Trains as layer by layer, and goes on to the same bits."""
    options = ("--dropout", 0.1, "--checkpoint-every", 5, "--keep", 9)
    ends = {}
    for name, times in [("layers", (1.0, 2.0)), ("at once", (2.0, 1.0))]:
        cupy = gpu(True, times=times)
        _, events = train(*options, name=name)
        ends[name] = [event["train_loss"] for event in events if event["event"] == "epoch"], events[-1]
        steps = [graph for graph in cupy.recorded if ("launch", "deal") in graph]
        assert {("launch", "small_rows_2") in graph for graph in steps} == {name == "at once"}
    assert ends["at once"][0] == pytest.approx(ends["layers"][0], rel=1e-4)
    gpu(True, times=(2.0, 1.0))
    _, again = train(*options, "--resume", train.runs.checkpoint(10, "at once"), name="again")
    assert again[-1]["test_loss"] == pytest.approx(ends["at once"][1]["test_loss"], rel=1e-4)


@pytest.mark.parametrize("late", [False, True])
def test_a_classifier_replays_its_steps_too(gpu, late):
    cupy = gpu(late)
    images, labels = images_and_labels(600)
    rows = images.reshape(len(images), -1).astype(np.float32)
    ours, theirs = (Classifier(hidden=(9,), epochs=3, device=device).fit(rows, labels) for device in ("cuda", "cpu"))
    assert [score.loss for score in ours.history_] == pytest.approx([score.loss for score in theirs.history_], rel=1e-4)
    assert any(event[0] == "replay" for event in cupy.events)


@pytest.mark.parametrize("times", [(2.0, 1.0), (1.0, 2.0)])
def test_a_reproducible_classifier_measures_nothing_on_a_gpu(gpu, times):
    """Also where all rows of a step are one group: what a clock says decides nothing."""
    gpu(False, times=times)
    images, labels = images_and_labels(300)
    rows = images.reshape(len(images), -1).astype(np.float32)
    settings = {"hidden": (9,), "epochs": 3, "batch_size": 64, "reproducible": True}
    ours, theirs = (Classifier(device=device, **settings).fit(rows, labels) for device in ("cuda", "cpu"))
    assert [epoch.loss for epoch in ours.history_] == pytest.approx([e.loss for e in theirs.history_], rel=1e-4)
