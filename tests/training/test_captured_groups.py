"""Replayed steps of a reproducible run: the bits of the steps that the host tells, on any number of ranks."""

import numpy as np
import pytest

from mpi_parallel.config.learning import OptimizerOptions
from mpi_parallel.device.interface import Schedule
from mpi_parallel.training.ahead import in_order
from mpi_parallel.training.captured import AHEAD, CapturedSteps
from mpi_parallel.training.pacing import why_not
from mpi_parallel.training.step import HostSteps
from tests.assembly import ALONE, assemble, world
from tests.device.recording import Recording
from tests.result_merging.test_accelerator import log_messages
from tests.samples import write_image_set
from tests.training.test_captured import plain, train

STEPS = 14
RULE = OptimizerOptions(lr=0.01, warmup=2, clip_norm=0.3)
SETTINGS = {"batch_size": 14, "optimizer": "adam", "dropout": 0.2, "shards": 16}
MERGES = ["exact", "sharded", "exact by NCCL"]


@pytest.fixture
def path(shared_path):
    """5 steps an epoch, whose groups are of 4 or 3 rows, or of 1 or 2; each rank its own file."""
    return write_image_set(shared_path / f"set-{world().rank}.h5", train=61)


def assembled(path, device, merge, **settings):
    """A run on all ranks with one of MERGES."""
    merge, _, nccl = merge.partition(" by ")
    device._chip = f"chip {world().rank}" if nccl else "the only one"
    return assemble(path, world(), device=device, merge=merge, **settings)


def steps_of(run, clip=RULE.clip_norm, graphs=True):
    assert why_not(run.engine, run.merger) is None
    schedule = Schedule(RULE.lr, False, RULE.warmup, STEPS, clip)
    run.steps = CapturedSteps(run.engine, run.merger, run.optimizer, schedule, graphs)
    return run.steps


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(
    "settings", [{"groups": 4}, {"groups": 2}, {"groups": 8, "micro_batch": 1, "batch_size": 9}], ids=str
)
def test_replays_are_the_bits_of_one_rank_that_the_host_tells(path, monkeypatch, merge, settings):
    """Early and late ones; also of a rank without groups, and where groups of a step are of several lengths."""
    settings = {**SETTINGS, **settings}
    alone = assemble(path, ALONE, device=plain(), **settings)
    expected = train(alone, HostSteps(alone.engine, alone.merger, alone.optimizer, RULE, STEPS), STEPS)
    for late, graphs in [(True, True), (False, True), (True, False)]:
        device = Recording(monkeypatch, late=late)
        run = assembled(path, device, merge, **settings)
        steps = steps_of(run, graphs=graphs)
        assert train(run, steps, STEPS) == expected
        assert steps.replays == graphs == any(entry.startswith("replay") for entry in device.log)
        np.testing.assert_array_equal(run.weights(), alone.weights())
        run.close()


# What the host does for a replayed step of two ranks, the third that is under way. The exact merger exchanges once, the
# other one also the finished gradient, for its norm, and the weights. Between GPUs nothing needs the host.
CUT = ["replay", "mark", "wait", "message"]
ORDER = {"exact": [*CUT, *CUT[:3]], "sharded": [*CUT, "message", *CUT, *CUT, *CUT[:3]], "exact by NCCL": CUT[:3]}


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("merge", MERGES)
def test_the_order_of_a_step(path, monkeypatch, merge):
    """One rank replays one graph, and waits for none but the step of two before."""
    device = Recording(monkeypatch)
    run = assembled(path, device, merge, groups=4, **{**SETTINGS, "batch_size": 4})
    marks = []

    def before(number):
        marks.append(device.stream.marks)
        device.log.clear()
        return False, False

    log_messages(monkeypatch, device.log)
    for number, _ in enumerate(in_order(steps_of(run), run.training.epoch(0, 4), 0, before), AHEAD):
        if number == 9:
            break
    alone = ["replay", "mark", "wait"]
    assert [entry.split()[0] for entry in device.log] == (alone if world().size == 1 else ORDER[merge])
    assert device.log[-1] == f"wait {marks[-1 - AHEAD + 1]}"
    run.close()


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("groups", [2, 8])
def test_what_a_rank_asks_for_is_heard_once(path, monkeypatch, merge, groups):
    """Also from one without groups, by replays and by the host's steps."""
    last = world().rank == world().size - 1
    asked = lambda number: (number == 8 and last, number == 3 and last)  # noqa: E731
    for captured in (True, False):
        settings = {**SETTINGS, "batch_size": 5, "groups": groups}
        device = Recording(monkeypatch, late=captured)
        run = assembled(path, device, merge, **settings)
        host = HostSteps(run.engine, run.merger, run.optimizer, RULE, STEPS)
        steps = steps_of(run, clip=0.0) if captured else host
        told = [totals for _, totals in in_order(steps, run.training.epoch(0, 5), 0, asked)]
        assert [number for number, totals in enumerate(told) if totals.stop] == [8 + steps.ahead]
        assert [number for number, totals in enumerate(told) if totals.save] == [3 + steps.ahead]
        run.close()
