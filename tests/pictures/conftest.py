"""The folder of a run as it leaves it, without the run."""

import json
import tomllib

import numpy as np
import pytest

from mpi_parallel.pictures.records import GALLERY, Gallery, Record

PHASES = ("data", "compute", "merge", "update", "other")


@pytest.fixture
def run(tmp_path):
    """Make the record of a run of so many epochs and ranks; `without` leaves a file or an event out."""

    def make(name="first", epochs=3, ranks=2, pipe=1, without=()):
        folder = tmp_path / name
        folder.mkdir()
        events = [start(ranks, pipe), *(epoch(n, ranks) for n in range(1, epochs + 1)), END]
        kept = [event for event in events if event["event"] not in without]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, kept)))
        (folder / "config.toml").write_text('[data]\ndata = "<set>.h5"\n')
        if "gallery" not in without:
            gallery().write(folder / GALLERY)
        if "trace" not in without:
            (folder / "trace.json").write_text(json.dumps({"traceEvents": list(trace(ranks))}))
        assert tomllib.loads((folder / "config.toml").read_text())
        return Record(folder)

    return make


def start(ranks, pipe):
    grid = {"data": ranks // pipe, "pipe": pipe, "tensor": 1}
    return {
        "event": "start", "ranks": ranks, "grid": grid, "hosts": ["node<1>"], "device": "cpu", "precision": "float32",
        "merge": "buckets", "parameters": 131, "versions": {"numpy": "2"}, "threads": 1,
        "config": {"parallel": {"pipe_schedule": "1f1b"}},
    }  # fmt: skip


def epoch(number, ranks):
    return {
        "event": "epoch", "epoch": number, "step": 4 * number, "samples_per_second": 1000.0 * ranks, "seconds": 0.1,
        "train_loss": 1 / number, "train_accuracy": 1 - 0.5 / number, "validation_loss": 1.1 / number,
        "validation_accuracy": 1 - 0.6 / number, "lr": 1e-3, "slowest_rank": 0,
        "seconds_by_rank": {phase: [0.1 + rank for rank in range(ranks)] for phase in PHASES},
    }  # fmt: skip


END = {
    "event": "end", "step": 12, "epochs": 3, "reason": "finished", "seconds": 2.5, "test_loss": 0.4,
    "test_accuracy": 0.8765, "weights_sha256": "ab" * 32,
}  # fmt: skip


def gallery(shape=(3, 4), mistakes=5):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (mistakes, *shape), np.uint8)
    weights = random.normal(size=(int(np.prod(shape)), 8)).astype(np.float32)
    labels, predicted = np.zeros(mistakes, np.int64), np.ones(mistakes, np.int64)
    confusion = np.array([[7, 3, 0], [0, 9, 0], [1, 1, 12]])
    return Gallery(
        ("a<b", "bee", "sea"), shape, confusion, images, labels, predicted, np.full(mistakes, 0.9), weights
    )  # fmt: skip


def trace(ranks):
    """A step of two micro-batches on every rank, and a bucket that travels beside backward."""
    for rank in range(ranks):
        for number, lane in enumerate(("main", "messages")):
            yield {"ph": "M", "pid": rank, "tid": number, "name": "thread_name", "args": {"name": lane}}
        spans = [("step 1", 0, 60, None)]
        for micro in (0, 1):
            spans += [("forward", 10 + 10 * micro, 8, micro), ("backward", 30 + 10 * micro, 9, micro)]
        spans += [("wait", 50, 5, None), ("merge", 55, 4, None)]
        for name, begun, took, micro in spans:
            arguments = {"step": 1} | ({} if micro is None else {"micro": micro})
            yield {"ph": "X", "pid": rank, "tid": 0, "name": name, "ts": begun, "dur": took, "args": arguments}
        bucket = {"name": "sum of 10 weights", "ts": 42, "dur": 15, "args": {"step": 1}}
        yield {"ph": "X", "pid": rank, "tid": 1, **bucket}
