"""Mergers for GPUs, on the recording device: the training of one rank, the order of things, and who serves where."""

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.config.learning import OptimizerOptions
from mpi_parallel.device import Host, open_device
from mpi_parallel.device.interface import Schedule
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.cuda_probe import Awareness
from mpi_parallel.mpi.window import SharedWindow
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.nn.precision import FORMATS
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.options import InputError
from mpi_parallel.result_merging import accelerator
from mpi_parallel.result_merging.accelerator import ACCELERATED, NcclSharded, open_accelerated
from mpi_parallel.result_merging.automatic import open_merger
from mpi_parallel.result_merging.exact_nccl import ExactNccl
from mpi_parallel.result_merging.pinned import Pinned
from mpi_parallel.training.ahead import in_order
from mpi_parallel.training.captured import AHEAD, CapturedSteps
from mpi_parallel.training.pacing import why_not
from mpi_parallel.training.step import HostSteps
from tests.assembly import ALONE, assemble, world
from tests.device.emulated import installed
from tests.device.opened import opened
from tests.device.recording import Recording
from tests.device.strict import inside
from tests.once import once
from tests.samples import spoil, write_image_set

STEPS = 14
RULE = OptimizerOptions(lr=0.01, warmup=2, clip_norm=0.3)
SETTINGS = {"batch_size": 14, "optimizer": "adam", "micro_batch": 4}
KINDS = [*ACCELERATED, "sharded", "flat", "flat in bfloat16", "shares by MPI"]


@pytest.fixture
def path(shared_path):
    return write_image_set(shared_path / f"set-{world().rank}.h5", train=61)


@pytest.fixture
def device(monkeypatch):
    """A chip for each rank, and an MPI that knows what to do with its arrays."""

    def sum_there(self, array):
        self.comm.Allreduce(MPI.IN_PLACE, inside(array))

    monkeypatch.setattr(Communicator, "sum_there", sum_there)
    monkeypatch.setattr(accelerator, "probe", lambda: Awareness(True, ""))
    return Recording(monkeypatch, chip=f"chip {MPI.COMM_WORLD.rank}")


def assembled(path, device, merge, **settings):
    """A run on all ranks with one of KINDS."""
    if merge == "shares by MPI":
        device._nccl, merge = False, "sharded"
    name, _, wire = merge.partition(" in ")
    return assemble(path, world(), device=device, merge=name, wire=wire or "float32", **settings)


def train(run, steps):
    totals = []
    for epoch in range(STEPS):
        for batch in run.training.epoch(epoch, run.batch_size):
            if len(totals) == STEPS:
                return totals
            totals.append(steps(batch, len(totals), False, False))
    return totals


def captured(run, graphs):
    assert why_not(run.engine, run.merger) is None
    schedule = Schedule(RULE.lr, False, RULE.warmup, STEPS, RULE.clip_norm)
    run.steps = CapturedSteps(run.engine, run.merger, run.optimizer, schedule, graphs)
    return run.steps


def by_the_host(run):
    return HostSteps(run.engine, run.merger, run.optimizer, RULE, STEPS)


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("merge", KINDS)
def test_ranks_train_as_one_and_replays_as_eager_steps(path, device, merge):
    precision = {2: "float16", 3: "float32"}[world().size]
    alone = assemble(path, ALONE, precision=precision, **SETTINGS)
    expected = train(alone, by_the_host(alone))
    weights = {}
    for way in ("replayed", "eager", "host"):
        run = assembled(path, device, merge, precision=precision, **SETTINGS)
        totals = train(run, by_the_host(run) if way == "host" else captured(run, way == "replayed"))
        np.testing.assert_allclose([t.loss for t in totals], [t.loss for t in expected], rtol=2e-3)
        assert [(t.count, t.finite) for t in totals] == [(t.count, t.finite) for t in expected]
        weights[way] = run.weights()
        np.testing.assert_allclose(weights[way], alone.weights(), atol=2e-3)
        assert len({w.tobytes() for w in world().gather(weights[way])}) == 1
        run.close()
    np.testing.assert_array_equal(weights["replayed"], weights["eager"])
    np.testing.assert_allclose(weights["host"], weights["eager"], atol=1e-6)


@pytest.mark.parallel([2])
@pytest.mark.parametrize("merge", ["sharded", "shares by MPI", "flat"])
def test_lamb_is_replayed_also_where_ranks_own_parts_of_a_layer(path, device, merge):
    settings = {**SETTINGS, "optimizer": "lamb", "weight_decay": 0.01}
    alone = assemble(path, ALONE, **settings)
    expected = train(alone, by_the_host(alone))
    weights = []
    for graphs in (True, False):
        run = assembled(path, device, merge, **settings)
        steps = captured(run, graphs)
        totals = train(run, steps)
        assert steps.replays == graphs
        np.testing.assert_allclose([t.loss for t in totals], [t.loss for t in expected], rtol=2e-3)
        np.testing.assert_allclose(run.weights(), alone.weights(), atol=2e-3)
        weights.append(run.weights())
        run.close()
    np.testing.assert_array_equal(*weights)


@pytest.mark.parallel([4])
def test_the_pinned_window_sums_between_nodes(path, device):
    alone, run = assemble(path, ALONE, **SETTINGS), assemble(path, world(), device=device, **SETTINGS)
    node = run.comm.split(run.comm.rank // 2)
    run.merger = Pinned(run.model.store, run.comm.on(device), node)
    train(alone, by_the_host(alone)), train(run, captured(run, True))
    np.testing.assert_allclose(run.weights(), alone.weights(), atol=2e-4)
    run.close()
    node.free()


# What the host does for a replayed step on several ranks, of which others are under way: between two halves of a step
# it waits for the first, and with that for all before; it reads what came of a step when two more have been begun.
IN_ONE = ["replay", "mark 10", "wait 8"]
CUT = ["replay", "mark 19", "wait 19", "message", "replay", "mark 20", "wait 16"]
ORDER = {
    "nccl": IN_ONE,
    "sharded": IN_ONE,
    "pinned": [*CUT[:3], "meet", "meet", *CUT[4:]],
    "aware": CUT,
    "flat": CUT,
    "flat in bfloat16": [*CUT[:3], *["message"] * 3, *CUT[4:]],  # everyone's shares, their sums, and the tails
    "shares by MPI": [
        "replay", "mark 37", "wait 37", "message", "message",  # gradients and tails
        "replay", "mark 38", "wait 38", "message",  # the norm
        "replay", "mark 39", "wait 39", "message",  # weights
        "replay", "mark 40", "wait 32",
    ],
}  # fmt: skip
MESSAGES = ("sum", "sum_there", "begin_sum", "sum_shares", "gather_shares", "gather_rows", "exchange_columns")


def log_messages(monkeypatch, log):
    """Have the ranks' messages and meetings in the log of a device, too."""

    def logged(kind, name, entry):
        verb = getattr(kind, name)

        def called(self, *arguments):
            log.append(entry)
            return verb(self, *arguments)

        monkeypatch.setattr(kind, name, called)

    for name in MESSAGES:
        logged(Communicator, name, "message")
    logged(SharedWindow, "meet", "meet")


@pytest.mark.parallel([2])
@pytest.mark.parametrize("merge", KINDS)
def test_the_order_of_a_step(path, device, merge, monkeypatch):
    run = assembled(path, device, merge, **{**SETTINGS, "batch_size": 5})

    def before(number):
        device.log.clear()
        return False, False

    batches = run.training.epoch(0, 5)
    log_messages(monkeypatch, device.log)
    for number, _ in enumerate(in_order(captured(run, True), batches, 0, before), AHEAD):
        if number == 9:
            break
    assert [entry.split(" ")[0] if entry.startswith("replay") else entry for entry in device.log] == ORDER[merge]
    run.close()


@pytest.mark.parallel([2])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("merge", KINDS)
def test_flags_of_one_rank_reach_all_with_the_last_step_that_is_under_way(path, device, merge, late):
    device.stream.late = late
    run = assembled(path, device, merge, **{**SETTINGS, "batch_size": 5})
    last = world().rank == world().size - 1
    batches = run.training.epoch(0, 5)
    asked = lambda number: (number == 8 and last, number == 3 and last)  # noqa: E731
    told = [t for _, t in in_order(captured(run, True), batches, 0, asked)]
    assert [number for number, t in enumerate(told) if t.stop] == [8 + AHEAD]
    assert [number for number, t in enumerate(told) if t.save] == [3 + AHEAD]
    run.close()


@pytest.mark.parallel([2])
@pytest.mark.parametrize("merge", KINDS)
def test_gpus_that_are_late_take_the_same_steps(path, device, merge):
    """One that goes bad, among them: all ranks hold, and go on with the steps behind it."""
    spoil(path, 40)
    weights, told = [], []
    for late, ahead in [(True, True), (False, False)]:
        device.stream.late = late
        run = assembled(path, device, merge, **{**SETTINGS, "batch_size": 5, "micro_batch": None})
        steps = captured(run, True)
        steps.ahead = min(steps.ahead, AHEAD * ahead)
        with np.errstate(all="ignore"):
            told.append([t for _, t in in_order(steps, run.training.epoch(0, 5), 0)])
        weights.append(run.weights())
        run.close()
    assert [(t.count, t.finite) for t in told[0]] == [(t.count, t.finite) for t in told[1]]
    assert sum(not t.finite for t in told[0]) == 1
    np.testing.assert_array_equal(*weights)


def small_store(device):
    return ParameterStore(device, [("W0", (3, 2)), ("b0", (2,))])


def refused(memory):
    raise InputError("8 bytes cannot")


class TestWhoServes:
    @pytest.mark.parallel([2, 3])
    def test_nccl_wherever_each_rank_has_a_gpu(self, device):
        comm = world().on(device)
        assert open_accelerated("auto", small_store(device), comm).name == "nccl"
        assert isinstance(open_accelerated("sharded", small_store(device), comm), NcclSharded)

    @pytest.mark.parallel([2, 3])
    def test_the_pinned_window_where_ranks_share_one(self, device):
        device._chip = "the only one"
        comm = world().on(device)
        merger = open_accelerated("auto", small_store(device), comm)
        assert merger.name == "pinned"
        merger.close()
        assert open_accelerated("sharded", small_store(device), comm) is None  # the one by way of the host
        with pytest.raises(InputError, match=r"ranks 0 and 1 share .*the only one"):
            open_accelerated("nccl", small_store(device), comm)

    @pytest.mark.parallel([2, 3])
    def test_of_groups_nccl_or_what_was_measured(self, device):
        comm, rule = world().on(device), RULES["sgd"]
        choice = open_merger("auto", small_store(device), comm, rule, groups=4)
        assert (type(choice.merger), choice.seconds) == (ExactNccl, {})
        device._chip = "the only one"
        for name in ("auto", "exact", "sharded"):
            merger = open_merger(name, small_store(device), comm, rule, groups=4).merger
            assert merger.name == name or name == "auto"
            assert not isinstance(merger, ExactNccl)

    @pytest.mark.parallel([2, 3])
    def test_flat_where_one_rank_cannot_lock_the_window(self, device):
        device._chip = "the only one"
        if world().rank == 1:
            device.register = refused
        comm = world().on(device)
        merger = open_accelerated("auto", small_store(device), comm)
        assert merger.name == "flat"
        with pytest.raises(InputError, match="--merge pinned: rank 1: 8 bytes cannot; or choose --merge flat"):
            open_accelerated("pinned", small_store(device), comm)

    @pytest.mark.parallel([2, 3])
    def test_the_pinned_window_where_one_rank_has_no_nccl(self, device):
        device._nccl = world().rank != 1
        merger = open_accelerated("auto", small_store(device), world().on(device))
        assert merger.name == "pinned"
        merger.close()
        with pytest.raises(InputError, match="rank 1 has none: none was made"):
            open_accelerated("nccl", small_store(device), world().on(device))

    @pytest.mark.parallel([2, 3])
    def test_an_mpi_that_failed_its_probe_is_never_given_addresses(self, device, monkeypatch):
        monkeypatch.setattr(accelerator, "probe", lambda: Awareness(False, "it died (signal 11)"))
        with pytest.raises(InputError, match="signal 11"):
            open_accelerated("aware", small_store(device), world().on(device))

    @pytest.mark.parallel([2, 3])
    def test_no_gpu(self):
        for name in ACCELERATED:
            with pytest.raises(InputError, match="cpu"):
                open_accelerated(name, small_store(Host()), world())
        assert open_accelerated("auto", small_store(Host()), world()) is None


@once
@pytest.mark.parallel([2])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("layout", [{"merge": "pinned"}, {"pipe": 2}, {"tensor": 2}], ids=str)
def test_ranks_on_emulated_gpus_train_as_one_on_the_cores(path, monkeypatch, layout, precision):
    """The device's own code and kernels; halves between stages, sums of float32 between slices."""
    alone = assemble(path, ALONE, precision=precision, **SETTINGS)
    expected = train(alone, by_the_host(alone))
    device = opened(monkeypatch, installed(monkeypatch), precision=precision)
    run = assemble(path, world(), device=device, precision=precision, **{"merge": "flat", **layout, **SETTINGS})
    totals = train(run, captured(run, True) if layout.get("merge") else by_the_host(run))
    np.testing.assert_allclose([t.loss for t in totals], [t.loss for t in expected], rtol=3e-2)
    np.testing.assert_allclose(run.whole(), alone.whole(), atol=3e-2)
    run.close()


@pytest.mark.gpu
@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("precision", FORMATS)
def test_ranks_on_real_gpus_train_as_one_on_the_cores(path, precision):
    """Whatever `auto` takes here; on one GPU the pinned window."""
    device = open_device("cuda", world().rank, precision)
    alone = assemble(path, ALONE, precision=precision, **SETTINGS)
    expected = train(alone, by_the_host(alone))
    run = assemble(path, world(), device=device, merge="auto", precision=precision, **SETTINGS)
    assert run.merger.name in ("flat" if world().size == 1 else ACCELERATED)
    totals = train(run, captured(run, True))
    assert run.steps.replays
    np.testing.assert_allclose([t.loss for t in totals], [t.loss for t in expected], rtol=3e-2)
    np.testing.assert_allclose(run.whole(), alone.whole(), atol=3e-2)
    assert len({w.tobytes() for w in world().gather(run.weights())}) == 1
    run.close()


@pytest.mark.gpu
@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("merge", ["exact", "sharded"])
def test_ranks_on_real_gpus_end_with_the_bits_of_one(path, merge):
    """Replayed steps, with groups of 1 to 4 rows; the ranks may share one GPU."""
    device = open_device("cuda", world().rank, measure=False)
    settings = {**SETTINGS, "dropout": 0.2, "groups": 4, "micro_batch": None, "device": device}
    weights = []
    for comm in (ALONE, world()):
        run = assemble(path, comm, merge=merge, **settings)
        steps = captured(run, True)
        train(run, steps)
        assert steps.replays
        weights.append(run.weights())
        run.close()
    np.testing.assert_array_equal(*weights)
