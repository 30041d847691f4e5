"""All mergers against the flat one's definition: the same sums, totals, norms and weights on any number of ranks."""

import gc
import tracemalloc
from functools import partial
from mmap import PAGESIZE
from pathlib import Path

import numpy as np
import pytest

from mpi_parallel.config.running import ParallelOptions
from mpi_parallel.device import Host
from mpi_parallel.mpi import messages
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.nn.store import BAD, CORRECT, COUNT, LOSS, SAVE, STOP, ParameterStore
from mpi_parallel.options import InputError
from mpi_parallel.result_merging.automatic import open_merger
from mpi_parallel.result_merging.registry import CANONICAL, MERGERS
from mpi_parallel.result_merging.window import Window
from tests.assembly import world
from tests.device.strict import Strict
from tests.result_merging.kinds import SUMS, TREES

SHAPES = [("W2", (7, 3)), ("b2", (3,)), ("W1", (40, 7)), ("b1", (7,)), ("W0", (30, 40)), ("b0", (40,))]
ALL = pytest.mark.parallel([1, 2, 3, 4])


# With those whose sums are the same bits on any number of ranks.
EVERY = {**SUMS, **{f"canonical {name}": partial(make, groups=8) for name, make in TREES.items()}}
KIND = pytest.mark.parametrize("kind", SUMS)


def make_store(shapes=SHAPES) -> ParameterStore:
    store = ParameterStore(Host(), shapes)
    store.weights[:] = np.random.default_rng(0).normal(size=store.size)
    return store


def gradient(rank: int, step: int, size: int) -> np.ndarray:
    return np.random.default_rng([rank, step]).normal(size=size).astype(np.float32)


def backward(merger, comm, step: int) -> None:
    """What an engine does for each group of rows: write the gradients layer by layer, tell of each layer, and leave the
    sums."""
    store = merger.store
    parameters = list(store.parameters.values())
    for group in range(merger.groups):
        store.zero_grad()
        values = gradient(comm.rank, step + 1000 * group, store.size)
        for first in range(0, len(parameters), 2):
            layer = parameters[first : first + 2]
            for parameter in layer:
                parameter.gradient[...] = values[parameter.span].reshape(parameter.gradient.shape)
            merger.ready(layer)
        store.tail[[LOSS, CORRECT, COUNT]] = 0.1 * (comm.rank + 1), comm.rank, 10 + comm.rank
        merger.collect()


def train(merger, optimizer, comm, steps: int, clip: bool = False) -> list:
    told = []
    for step in range(steps):
        backward(merger, comm, step)
        totals = merger.merge()
        norm = merger.norm() if clip else 1.0
        optimizer.step(merger.owned, 0.01, 1 / totals.count / norm, merger.total)
        merger.publish()
        told.append((totals, norm))
    return told


@ALL
@KIND
def test_ranks_that_round_differently_clip_alike(kind, monkeypatch):
    """As those of a job on two makes of processors do: who clips otherwise has other weights from then on."""
    comm, dot = world(), np.dot
    merger = SUMS[kind](make_store(), comm)
    monkeypatch.setattr(np, "dot", lambda a, b: dot(a, b) * (1 + 1e-3 * comm.rank))
    told = train(merger, RULES["sgd"](merger.store), comm, 3, clip=True)
    assert len(set(comm.comm.allgather(tuple(norm for _, norm in told)))) == 1
    everyone = comm.gather(merger.store.weights)
    assert all(np.array_equal(weights, everyone[0]) for weights in everyone)
    merger.close()


@ALL
@KIND
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "adam", "lamb"])
def test_weights_are_those_of_the_sum_in_float64(kind, clip, rule):
    comm, steps = world(), 5
    store = make_store()
    reference = ParameterStore(Host(), SHAPES)
    reference.weights[:] = store.weights
    merger, optimizer, theirs = SUMS[kind](store, comm), RULES[rule](store, 0.01), RULES[rule](reference, 0.01)
    told = train(merger, optimizer, comm, steps, clip)
    count = sum(10 + rank for rank in range(comm.size))
    for step, (totals, norm) in enumerate(told):
        whole = sum(gradient(rank, step, store.size).astype(float) for rank in range(comm.size))
        if clip:
            assert norm == pytest.approx(np.linalg.norm(whole), rel=1e-5)
        assert (totals.count, totals.correct) == (count, sum(range(comm.size)))
        assert totals.loss == pytest.approx(0.1 * sum(range(1, comm.size + 1)), rel=1e-6)
        assert (totals.finite, totals.stop) == (True, False)
        reference.gradients[:] = whole
        theirs.step(slice(0, store.size), 0.01, 1 / count / norm)
    np.testing.assert_allclose(store.weights, reference.weights, rtol=1e-5, atol=2e-6)
    merger.close()


@ALL
@KIND
def test_all_ranks_have_the_same_bits(kind):
    comm, store = world(), make_store()
    merger = SUMS[kind](store, comm)
    told = train(merger, RULES["adam"](store), comm, 4, clip=True)
    numbers = [[t.loss, t.correct, t.count, norm] for t, norm in told]
    for rows in (comm.gather(np.array(numbers)), comm.gather(store.weights)):
        assert all(np.array_equal(row, rows[0]) for row in rows)
    merger.close()


@ALL
@KIND
def test_each_weight_is_owned_by_one_rank_of_the_node_or_by_all(kind):
    comm, store = world(), make_store()
    merger = SUMS[kind](store, comm)
    node = getattr(merger, "node", comm)
    mine = np.zeros(store.size, np.int64)
    mine[merger.owned] = 1
    node.sum(mine)
    shared = kind in ("flat", "buckets", "small buckets")
    assert (mine == (node.size if shared else 1)).all()
    merger.close()


@ALL
@KIND
@pytest.mark.parametrize("flag", [STOP, SAVE, BAD, LOSS])
def test_one_ranks_flag_reaches_all(kind, flag):
    comm, store = world(), make_store()
    merger = SUMS[kind](store, comm)
    for unlucky in range(comm.size):
        backward(merger, comm, 0)
        if comm.rank == unlucky:
            store.tail[flag] = 1 if flag in (STOP, SAVE) else np.nan
        totals = merger.merge()
        assert (totals.stop, totals.save) == (flag == STOP, flag == SAVE)
        assert totals.finite == (flag in (STOP, SAVE))
        merger.publish()
    merger.close()


@ALL
@KIND
def test_a_step_that_is_not_taken_leaves_the_weights_and_the_next_one_works(kind):
    comm, store = world(), make_store()
    merger, before = SUMS[kind](store, comm), store.weights.copy()
    backward(merger, comm, 0)
    merger.merge()
    merger.publish()
    np.testing.assert_array_equal(store.weights, before)
    train(merger, RULES["sgd"](store), comm, 1)
    assert not np.array_equal(store.weights, before)
    merger.close()


@ALL
def test_on_one_node_the_window_sums_in_rank_order():
    comm, store = world(), make_store()
    store.gradients[:] = gradient(comm.rank, 0, store.size) * np.float32(10.0**comm.rank)
    slots = comm.gather(store.gradients)
    expected = slots[0].copy()
    for slot in slots[1:]:
        expected += slot
    reference = make_store()
    reference.gradients[:] = expected
    RULES["adam"](reference).step(slice(0, store.size), 0.01, 0.1)
    merger = Window(store, comm)
    merger.merge()
    RULES["adam"](store).step(merger.owned, 0.01, 0.1)
    merger.publish()
    np.testing.assert_array_equal(store.weights, reference.weights)
    merger.close()


@ALL
@KIND
def test_numpys_expressions_serve_where_there_are_no_compiled_kernels(kind, monkeypatch):
    monkeypatch.setattr("mpi_parallel.device.host.OpenMP", no_library)
    comm, store = world(), make_store()
    assert store.device.kernels.meet is None
    comm.device = store.device
    merger = SUMS[kind](store, comm)
    train(merger, RULES["adam"](store), comm, 3)
    weights = store.weights.copy()
    merger.close()
    monkeypatch.undo()
    store = make_store()
    merger = SUMS[kind](store, world())
    train(merger, RULES["adam"](store), comm, 3)
    np.testing.assert_allclose(weights, store.weights, rtol=1e-5, atol=1e-6)
    merger.close()


def no_library():
    raise ImportError("not built")


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("rule", ["momentum", "lamb"])
@KIND
def test_a_store_with_fewer_weights_than_lines_or_ranks(kind, rule):
    comm, store = world(), make_store([("w", (2,)), ("b", (1,))])
    merger = SUMS[kind](store, comm)
    train(merger, RULES[rule](store), comm, 3)
    rows = comm.gather(store.weights)
    assert all(np.array_equal(row, rows[0]) for row in rows)
    assert not np.array_equal(store.weights, make_store([("w", (2,)), ("b", (1,))]).weights)
    merger.close()


@ALL
@pytest.mark.parametrize("kind", EVERY)
def test_messages_may_be_cut(kind, monkeypatch):
    """As beyond MOST bytes: with a limit of 200 the same numbers come out, and of a canonical tree the same bits."""
    comm, weights = world(), []
    for limit in (1 << 30, 200):
        monkeypatch.setattr(messages, "MOST", limit)
        store = make_store()
        merger = EVERY[kind](store, comm)
        train(merger, RULES["sgd"](store), comm, 3)
        weights.append(store.weights.copy())
        merger.close()
    error = 0 if kind.startswith("canonical") else 1e-6
    np.testing.assert_allclose(*weights, rtol=10 * error, atol=error)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("kind", ["flat", "buckets", "small buckets", "sharded"])
def test_what_the_host_cannot_see_is_staged(kind):
    comm, weights = world(), []
    for device in (Host(), Strict()):
        store = ParameterStore(device, SHAPES)
        merger = SUMS[kind](store, comm.on(device))
        values = gradient(comm.rank, 0, store.size)
        store.gradients[...] = device.to_device(values)
        for parameter in store.parameters.values():
            merger.ready([parameter])
        assert merger.merge().count == 0
        RULES["sgd"](store).step(merger.owned, 0.1)
        merger.publish()
        weights.append(device.to_host(store.weights).copy())
    np.testing.assert_allclose(*weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parallel([1, 2])
def test_the_window_refuses_what_is_not_the_hosts():
    device = Strict()
    with pytest.raises(InputError, match="choose --merge auto"):
        Window(ParameterStore(device, SHAPES), world().on(device))


@pytest.mark.parallel([1, 2, 3])
def test_the_window_is_refused_on_all_ranks_where_one_node_has_too_little_shared_memory(monkeypatch):
    class Full:
        f_bavail, f_frsize = 17, 4096

    comm = world()
    if comm.rank == comm.size - 1:
        monkeypatch.setattr("mpi_parallel.mpi.window.os.statvfs", lambda path: Full())
    for kind in ("window", "nodes of two"):
        with pytest.raises(InputError, match="the 4,096 left for it in /dev/shm"):
            SUMS[kind](make_store(), comm)
    choice = open_merger("auto", make_store(), comm, RULES["adam"])
    assert "window" not in choice.seconds
    choice.merger.close()


@ALL
def test_a_closed_window_leaves_a_store_that_works():
    comm, store = world(), make_store()
    parameter = store.parameters["W1"]
    merger, optimizer = Window(store, comm), RULES["sgd"](store)
    train(merger, optimizer, comm, 2)
    before = store.weights.copy()
    merger.close()
    np.testing.assert_array_equal(store.weights, before)
    assert np.shares_memory(parameter.value, store.weights)
    assert np.shares_memory(parameter.gradient, store.gradients)
    train(MERGERS["flat"](store, comm), optimizer, comm, 1)
    assert not np.array_equal(store.weights, before)


@pytest.mark.parallel([2, 3, 4])
def test_the_ranks_of_a_node_read_the_same_weights_in_place():
    comm, store = world(), make_store()
    merger = Window(store, comm)
    if comm.rank == 1:
        store.parameters["W1"].value[...] = 42
    merger.window.meet()
    assert (store.parameters["W1"].value == 42).all()
    merger.close()


@ALL
@pytest.mark.parametrize("kind", ["auto", *MERGERS])
def test_mergers_by_name(kind):
    comm, store = world(), make_store()
    choice = open_merger(kind, store, comm, RULES["adam"])
    names = comm.gather_text(f"{choice}")
    assert names == [names[0]] * comm.size
    if kind != "auto":
        assert choice.merger.name == str(choice) == kind
    elif comm.size == 1:
        assert str(choice) == "flat"
    else:
        assert {"flat"} <= set(choice.seconds) <= set(MERGERS)
        assert choice.seconds[choice.merger.name] == min(choice.seconds.values())
    train(choice.merger, RULES["adam"](store), comm, 1)
    choice.merger.close()


def test_the_option_knows_the_mergers():
    choices = ParallelOptions.__dataclass_fields__["merge"].metadata["choices"]
    assert set(MERGERS) | {"auto"} <= set(choices)


@ALL
@pytest.mark.parametrize("kind", EVERY)
def test_a_step_that_repeats_allocates_no_array(kind):
    comm, store = world(), make_store([("W", (300, 300)), ("b", (300,))])
    merger, optimizer = EVERY[kind](store, comm), RULES["adam"](store)
    values = gradient(comm.rank, 0, store.size)

    def step() -> None:
        for _ in range(merger.groups):
            store.zero_grad()
            store.gradients[:] = values
            merger.ready(list(store.parameters.values()))
            merger.collect()
        totals = merger.merge()
        optimizer.step(merger.owned, 0.01, 0.1 * merger.norm() / max(1, totals.count))
        merger.publish()

    for _ in range(3):
        step()
    gc.collect()
    tracemalloc.start()
    try:
        step()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(3):
            step()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2000
    assert peak - before < 10_000  # views, numbers and requests, while the gradients have 361,200 bytes
    merger.close()


@pytest.mark.parallel([2])
@pytest.mark.parametrize("kind", [*MERGERS, *(f"canonical {name}" for name in CANONICAL)])
def test_ten_thousand_steps_take_no_memory(kind):
    comm, store = world(), make_store()
    merger, optimizer = EVERY[kind](store, comm), RULES["adam"](store)
    parameters = list(store.parameters.values())

    def steps(count: int) -> int:
        for _ in range(count):
            store.zero_grad()
            merger.ready(parameters)
            for _ in range(merger.groups):
                merger.collect()
            merger.merge()
            optimizer.step(merger.owned, 0.01)
            merger.publish()
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGESIZE  # what is resident now

    before = steps(1000)
    assert steps(10_000) - before < 1_000_000
    merger.close()
