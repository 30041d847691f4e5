"""The trace of a run: what every rank did when, on one clock."""

import json
from collections import defaultdict
from itertools import pairwise

import pytest
from mpi4py import MPI

from mpi_parallel.device.clock import Clock
from mpi_parallel.device.nvtx import Ranges, ranges_on
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.train import main
from mpi_parallel.training.trace import MOST_SELDOM, SELDOM, Recorder, Span, _in_lanes
from tests.samples import write_image_set

RANKS = [1, 2, 3]


@pytest.fixture
def trace(shared_path):
    """Run a traced training on all ranks, on 60 rows in steps of 16; the complete events of trace.json by rank."""

    def run(*options, rows=60, steps=6):
        world = Communicator(MPI.COMM_WORLD)
        data = write_image_set(shared_path / f"set-{world.rank}.h5", rows, 12, 20)
        given = [
            "--data",
            data,
            "--out",
            shared_path / "run",
            "--batch-size",
            16,
            "--steps",
            steps,
            "--trace",
            "--no-report",
        ]
        status = main(world, [str(word) for word in (*given, "--progress", "none", "--hidden", 8, *options)])
        assert status == 0
        world.gather_text("")  # rank 0 has written everything
        by_rank = defaultdict(list)
        for event in json.loads((shared_path / "run" / "trace.json").read_text())["traceEvents"]:
            if event["ph"] == "X":
                by_rank[event["pid"]].append(event)
        return dict(by_rank)

    return run


def of(events, step, *names):
    """The events of a step with these names, by time."""
    wanted = [event for event in events if event["args"]["step"] == step and event["name"] in names]
    return sorted(wanted, key=lambda event: event["ts"])


def end(event):
    return event["ts"] + event["dur"]


@pytest.mark.parallel(RANKS)
def test_every_rank_tells_every_step_in_its_order(trace):
    by_rank = trace("--merge", "flat")
    assert sorted(by_rank) == list(range(MPI.COMM_WORLD.size))
    for events in by_rank.values():
        for step in range(1, 7):
            phases = of(events, step, "gather", "forward", "backward", "merge", "update")
            assert [event["name"] for event in phases] == ["gather", "forward", "backward", "merge", "update"]
            assert all(end(one) <= other["ts"] + 0.01 for one, other in pairwise(phases))
            (whole,) = of(events, step, f"step {step}")
            assert whole["ts"] <= phases[0]["ts"]
            assert end(phases[-1]) <= end(whole) + 0.01
        names = {event["name"] for event in events}
        assert {"read data", "evaluate"} <= names
        assert "step 7" not in names


@pytest.mark.parallel([2, 3])
def test_who_comes_last_to_a_merge_does_not_wait(trace):
    by_rank = trace("--merge", "flat")
    for step in range(1, 7):
        merges = [of(events, step, "merge")[0] for events in by_rank.values()]
        # All go on at the moment at which the last one has come, however early they came, and that one does not wait.
        assert max(merge["ts"] for merge in merges) - min(merge["ts"] for merge in merges) < 0.01
        before = [[e for e in of(events, step, "wait") if end(e) <= merges[0]["ts"] + 1] for events in by_rank.values()]
        assert [] in before


@pytest.mark.parallel([2, 3])
def test_buckets_overlap_with_backward(trace):
    """Bucket sums begin while backward goes on: the trace shows them side by side."""
    by_rank = trace("--merge", "buckets", "--hidden", 600, 600, 600, steps=3)
    for events in by_rank.values():
        for step in (1, 2, 3):
            (backward,) = of(events, step, "backward")
            sums = [event for event in events if event["name"].startswith("sum of") and event["args"]["step"] == step]
            assert len(sums) == 2  # of the layers 3 and 2, and of 1 and 0 with the tail
            beside = [min(end(event), end(backward)) - event["ts"] for event in sums]
            assert sorted(overlap > 0 for overlap in beside) == [False, True]


@pytest.mark.parallel([2, 4])
def test_pipelines_tell_micro_batches(trace):
    by_rank = trace("--pipe", 2, "--micro-batch", 4, steps=2, rows=64)
    for events in by_rank.values():
        for name in ("forward", "backward"):
            micro = [event["args"]["micro"] for event in of(events, 2, name)]
            assert micro == list(range(len(micro)))
            assert len(micro) > 1
    # A micro-batch cannot go forward on the second stage before it has on the first.
    first, second = by_rank[0], by_rank[1]
    for one, other in zip(of(first, 2, "forward"), of(second, 2, "forward"), strict=True):
        assert end(one) <= end(other)


@pytest.mark.parallel([1, 2])
def test_the_reader_has_a_lane_of_its_own(trace):
    by_rank = trace("--holding", "streaming", "--shards", 4)
    for events in by_rank.values():
        assert [event for event in events if event["name"] == "read"]


@pytest.mark.parallel([1, 2])
def test_checkpoints_show_what_the_step_waits_for_and_what_goes_on_beside(trace):
    for events in trace("--checkpoint-every", 4).values():
        lanes = {event["tid"] for event in events if event["name"] == "checkpoint"}
        assert len(lanes) == 2


@pytest.mark.parallel([1, 2])
def test_only_the_first_steps_are_kept(trace):
    for events in trace("--trace-steps", 2).values():
        assert max(event["args"]["step"] for event in events if event["name"] not in SELDOM) == 2


@pytest.mark.parallel([1, 2])
def test_a_run_that_goes_on_is_traced_from_there(trace):
    trace("--checkpoint-every", 4, steps=4)
    by_rank = trace("--resume", "auto", "--trace-steps", 2, steps=9)
    for events in by_rank.values():
        taken = {event["args"]["step"] for event in events if event["name"] == "merge"}
        assert taken <= {5, 6}
        assert of(events, 5, "update")


def test_memory_is_bounded_by_the_steps_that_are_kept():
    recorder = Recorder(steps=3)
    for step in range(1, 3 * MOST_SELDOM):
        for number, name in enumerate(("forward", "backward", "evaluate")):
            recorder.change(step + number / 10, step, name, None)
    assert len(recorder.spans) <= 3 * 3 + MOST_SELDOM


def test_spans_that_overlap_get_lanes_of_their_own():
    spans = [Span("messages", name, *times, 1) for name, times in {"a": (0, 2), "b": (1, 3), "c": (2, 4)}.items()]
    assert [(lane, span.name) for lane, span in _in_lanes(spans)] == [
        ("messages", "a"), ("messages 2", "b"), ("messages", "c"),
    ]  # fmt: skip


class Nvtx:
    """Stands for cupy.cuda.nvtx."""

    def __init__(self):
        self.calls = []

    def RangePush(self, name):  # noqa: N802, as NVTX calls it
        self.calls.append(name)

    def RangePop(self):  # noqa: N802
        self.calls.append("pop")


def test_nvtx_has_one_range_at_a_time():
    nvtx, clock = Nvtx(), Clock()
    clock.listeners = (Ranges(nvtx),)
    clock.enter("compute", "forward", 3)
    clock.enter("merge")
    assert nvtx.calls == ["forward 3", "pop", "merge"]


def test_the_host_has_no_nvtx():
    from mpi_parallel.device import Host

    assert ranges_on(Host()) == ()
