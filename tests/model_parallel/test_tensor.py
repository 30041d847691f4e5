"""Cut layers against the whole layer, and the loss over cut classes against that over all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device import Host
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.model_parallel.tensor import ColumnParallelLinear, RowParallelLinear, split_cross_entropy
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.messages import PendingSum
from mpi_parallel.mpi.partition import block
from mpi_parallel.nn import functional as F
from mpi_parallel.nn.layers import Linear
from mpi_parallel.nn.store import CORRECT, LOSS, ParameterStore
from tests.assembly import world
from tests.device.strict import Strict

RANKS = pytest.mark.parallel([1, 2, 3, 4])
B, INPUTS, OUTPUTS = 6, 7, 9  # which no number of ranks but one divides


def store_of(*shapes):
    return ParameterStore(Host(), shapes)


def arrays():
    """x (B, I), dy (B, O), W (I, O), b (O,)."""
    random = np.random.default_rng(5)
    return [
        random.normal(size=shape).astype(np.float32)
        for shape in [(B, INPUTS), (B, OUTPUTS), (INPUTS, OUTPUTS), (OUTPUTS,)]
    ]


def run(layer, x, dy, times=1):
    """y, dx after this many times forward and backward, adding to the gradients."""
    for _ in range(times):
        y, backward = layer.forward(x)
        dx = backward(dy.copy())
        layer.store.accumulating = True
    return y, dx


def whole(number, relu, times):
    """(y, dx, dW, db) of the uncut layer."""
    x, dy, W, b = arrays()
    store = store_of((f"W{number}", W.shape), (f"b{number}", b.shape))
    layer = Linear(Workspace(Host()), store, number, relu)
    layer.W.value[...], layer.b.value[...] = W, b
    return (*run(layer, x, dy, times), layer.W.gradient, layer.b.gradient)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@RANKS
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_cut_by_columns_it_is_the_whole_layer(number, relu, times):
    comm, (x, dy, W, b) = world(), arrays()
    mine = block(OUTPUTS, comm.size, comm.rank)
    cut = slice(mine.start, mine.stop)
    store = store_of((f"W{number}", (INPUTS, len(mine))), (f"b{number}", (len(mine),)))
    layer = ColumnParallelLinear(Workspace(Host()), store, number, relu, comm)
    layer.W.value[...], layer.b.value[...] = W[:, cut], b[cut]
    y, dx = run(layer, x, np.ascontiguousarray(dy[:, cut]), times)
    y_whole, dx_whole, dW, db = whole(number, relu, times)
    close(y, y_whole[:, cut])
    close(layer.W.gradient, dW[:, cut])
    close(layer.b.gradient, db[cut])
    if number:
        close(dx, dx_whole)
        assert all(np.array_equal(other, dx) for other in comm.gather(dx))


@RANKS
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_cut_by_rows_it_is_the_whole_layer(number, relu, times):
    comm, (x, dy, W, b) = world(), arrays()
    mine = block(INPUTS, comm.size, comm.rank)
    cut = slice(mine.start, mine.stop)
    bias = [(f"b{number}", (OUTPUTS,))] if comm.rank == 0 else []
    store = store_of((f"W{number}", (len(mine), OUTPUTS)), *bias)
    layer = RowParallelLinear(Workspace(Host()), store, number, relu, comm, mine)
    layer.W.value[...] = W[cut]
    if comm.rank == 0:
        layer.b.value[...] = b
    y, dx = run(layer, x if number == 0 else np.ascontiguousarray(x[:, cut]), dy, times)
    y_whole, dx_whole, dW, db = whole(number, relu, times)
    close(y, y_whole)
    close(layer.W.gradient, dW[cut])
    if comm.rank == 0:
        close(layer.b.gradient, db)
    if number:
        close(dx, dx_whole[:, cut])
    assert all(np.array_equal(other, y) for other in comm.gather(y))


def losses(z_BK, t_B):
    """(dz, tail) over this rank's classes, and over all on one rank."""
    comm = world()
    classes = block(z_BK.shape[1], comm.size, comm.rank)
    tails = np.zeros((2, 5), np.float32)
    mine = z_BK[:, classes.start : classes.stop].copy()
    split_cross_entropy(Workspace(Host()), mine, t_B, tails[0], classes, comm)
    dz_BK = F.softmax_cross_entropy(Workspace(Host()), z_BK.copy(), t_B, tails[1])
    return mine, dz_BK[:, classes.start : classes.stop], *tails


@RANKS
@given(st.integers(0, 9), st.integers(4, 30), st.sampled_from([0.1, 3.0, 80.0]), st.integers(0, 1000))
def test_loss_over_cut_classes_is_that_over_all(rows, classes, size, seed):
    random = np.random.default_rng(seed)
    z = (size * random.normal(size=(rows, classes))).astype(np.float32)
    ours, theirs, tail, expected = losses(z, random.integers(0, classes, rows).astype(np.int32))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(tail[LOSS], expected[LOSS], rtol=1e-5, atol=1e-5)
    assert tail[CORRECT] == expected[CORRECT]


@RANKS
def test_of_equal_logits_on_several_ranks_the_first_is_the_guess():
    z = np.zeros((8, 8), np.float32)
    *_, tail, expected = losses(z, np.arange(8, dtype=np.int32))
    assert tail[CORRECT] == expected[CORRECT] == 1
    z[:, [2, 5, 7]] = 1
    *_, tail, expected = losses(z, np.array([2, 5, 7, 2, 0, 1, 5, 7], np.int32))
    assert tail[CORRECT] == expected[CORRECT] == 2


@RANKS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 7])
def test_a_logit_that_is_not_finite_shows_in_the_loss_of_all_ranks(bad, at):
    z = np.ones((2, 8), np.float32)
    z[1, at] = bad
    with np.errstate(all="ignore"):
        *_, tail, _ = losses(z, np.array([3, at], np.int32))
    assert not np.isfinite(tail[LOSS])


@pytest.mark.parallel([2, 3])
def test_a_hundred_thousand_classes_travel_in_a_few_numbers_a_row(monkeypatch):
    comm, rows, classes = world(), 4, 100_000
    sent, plain = [], type(comm).sum

    def counted(self, array):
        sent.append(array.size)
        plain(self, array)

    monkeypatch.setattr(type(comm), "sum", counted)
    z = np.random.default_rng(0).normal(size=(rows, classes)).astype(np.float32)
    ours, theirs, tail, expected = losses(z, np.array([0, 99_999, 50_000, 33_334], np.int32))
    assert sent == [3 * rows]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(tail, expected, rtol=1e-5)


@RANKS
def test_cut_layers_and_their_loss_run_on_a_device_that_is_not_the_host():
    device, (x, dy, W, _) = Strict(), arrays()
    comm = world().on(device)
    mine = block(INPUTS, comm.size, comm.rank)
    store = ParameterStore(device, [("W1", (len(mine), OUTPUTS)), ("b1", (OUTPUTS,))])
    layer = RowParallelLinear(Workspace(device), store, 1, True, comm, mine)
    layer.W.value[...] = device.to_device(W[mine.start : mine.stop])
    y, backward = layer.forward(device.to_device(np.ascontiguousarray(x[:, mine.start : mine.stop])))
    backward(device.to_device(dy))
    close(device.to_host(y), np.maximum(x @ W, 0))
    t_B, classes = device.to_device(np.arange(B, dtype=np.int32)), block(OUTPUTS, comm.size, comm.rank)
    z_BK = device.to_device(np.ascontiguousarray(dy[:, classes.start : classes.stop]))
    split_cross_entropy(layer.ws, z_BK, t_B, store.tail, classes, comm)
    *_, expected = losses(dy, np.arange(B, dtype=np.int32))
    np.testing.assert_allclose(device.to_host(store.tail)[:2], expected[:2], rtol=1e-5)
    cut = ParameterStore(device, [("W1", (INPUTS, len(classes))), ("b1", (len(classes),))])
    columns = ColumnParallelLinear(Workspace(device), cut, 1, False, comm)
    columns.W.value[...] = device.to_device(np.ascontiguousarray(W[:, classes.start : classes.stop]))
    _, backward = columns.forward(device.to_device(x))
    dx = backward(device.to_device(np.ascontiguousarray(dy[:, classes.start : classes.stop])))
    close(device.to_host(dx), dy @ W.T)


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("number", [0, 1])
def test_the_sum_of_dx_travels_while_the_weight_gradient_is_computed(number, monkeypatch):
    comm, (x, dy, _, _), told = world(), arrays(), []
    mine = block(OUTPUTS, comm.size, comm.rank)
    store = store_of((f"W{number}", (INPUTS, len(mine))), (f"b{number}", (len(mine),)))
    layer = ColumnParallelLinear(Workspace(Host()), store, number, True, comm)
    begin, wait, take = Communicator.begin_sum, PendingSum.wait, layer.weight_gradient
    monkeypatch.setattr(Communicator, "begin_sum", lambda *given: [told.append("begin"), begin(*given)][1])
    monkeypatch.setattr(PendingSum, "wait", lambda pending: [told.append("wait"), wait(pending)][1])
    layer.weight_gradient = lambda *given: [told.append("dW"), take(*given)][1]
    run(layer, x, np.ascontiguousarray(dy[:, mine.start : mine.stop]))
    assert told == (["begin", "dW", "wait"] if number else ["dW"])
