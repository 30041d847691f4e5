"""The data-parallel engine: what a rank adds to the store, whatever its share of a batch."""

import numpy as np
import pytest

from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.replica import EVALUATION_ROWS, Replica
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.device import Host
from mpi_parallel.device.clock import Clock
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.store import CORRECT, COUNT, LOSS, STOP
from tests.reference import Reference
from tests.samples import CLASSES, images_and_labels

FEATURES = 12


@pytest.fixture
def engine():
    return engine_of(50)


def rows_of(n, seed=0):
    images, labels = images_and_labels(n, seed)
    return Rows(images.reshape(n, FEATURES), labels.astype(np.int32), Scaler.of(100.0, 60.0), Host())


def engine_of(rows, dropout=0.0, micro_batch=None):
    model = MLP(Host(), (FEATURES, 8, 5, CLASSES), dropout, seed=1)
    return Replica(model, rows_of(rows), Clock(), micro_batch)


def ignore(parameters):
    """Who hears that gradients are ready."""


def nothing():
    """Who collects groups."""


def batch_of(n):
    return Batch(np.arange(n), np.arange(n, dtype=np.uint32) * 77)


def merged_after(engine, n):
    """A copy of the gradients and sums after a batch of the first n rows."""
    engine.store.zero_grad()
    engine.run(batch_of(n), ignore, nothing)
    return engine.store.merged.copy()


def standardised(rows):
    return (rows.images.astype(float) - 100) / 60, rows.labels


@pytest.mark.parametrize("n", [1, 2, 50])
def test_adds_the_summed_gradient_loss_and_counts(engine, n):
    merged_after(engine, n)
    x, t = standardised(rows_of(50))
    loss, correct, gradients = Reference(engine.model.weights()).gradient(x[:n], t[:n])
    for name, expected in zip(["W0", "b0", "W1", "b1", "W2", "b2"], gradients, strict=True):
        np.testing.assert_allclose(engine.store.parameters[name].gradient, expected, rtol=1e-4, atol=1e-5)
    tail = engine.store.tail
    np.testing.assert_allclose(tail[LOSS], loss, rtol=1e-5)
    assert (tail[CORRECT], tail[COUNT], tail[STOP]) == (correct, n, 0)


def test_each_group_is_collected_apart(engine):
    groups = [range(7), range(7, 7), range(7, 20)]
    collected = []
    batch = Batch(batch_of(20).index, batch_of(20).keys, [0, 7, 7, 20])
    engine.run(batch, ignore, lambda: collected.append(engine.store.merged.copy()))
    assert [group[engine.store.size + COUNT] for group in collected] == [len(rows) for rows in groups]
    assert not collected[1].any()
    np.testing.assert_allclose(sum(collected), merged_after(engine, 20), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("size", [1, 7, 24, 25, 1000])
def test_micro_batches_add_up_to_the_batch(size, dropout):
    whole = merged_after(engine_of(50, dropout), 25)
    parts = merged_after(engine_of(50, dropout, micro_batch=size), 25)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    assert np.array_equal(parts[-3:], whole[-3:])  # number correct, count and flag


def test_dropout_depends_on_the_keys_alone():
    engine = engine_of(50, dropout=0.4)
    index = np.arange(50)
    results = []
    for keys in (index, index, index[::-1]):
        engine.store.zero_grad()
        engine.run(Batch(index, keys.astype(np.uint32)), ignore, nothing)
        results.append(engine.store.merged.copy())
    assert np.array_equal(results[0], results[1])
    assert not np.allclose(results[0], results[2])


@pytest.mark.parametrize("micro_batch", [None, 1, 4])
@pytest.mark.parametrize("n", [0, 1, 9])
def test_every_parameter_is_ready_once_and_last_layers_first(n, micro_batch):
    engine, told = engine_of(50, micro_batch=micro_batch), []
    engine.run(batch_of(n), told.extend, nothing)
    assert [parameter.name for parameter in told] == ["W2", "b2", "W1", "b1", "W0", "b0"]


def test_is_complete_when_it_says_so():
    """What a merger may send as soon as it is ready does not change any more."""
    engine, seen = engine_of(50, micro_batch=4), {}
    engine.run(batch_of(30), lambda parameters: seen.update({p.name: p.gradient.copy() for p in parameters}), nothing)
    for name, gradient in seen.items():
        assert gradient.any()
        assert np.array_equal(gradient, engine.store.parameters[name].gradient)


@pytest.mark.parametrize("held", [0, 50])
def test_a_rank_without_rows_adds_nothing(held):
    assert not merged_after(engine_of(held), 0).any()


@pytest.mark.parametrize("n", [0, 1, EVALUATION_ROWS, EVALUATION_ROWS + 1, 2 * EVALUATION_ROWS + 77])
def test_scores_every_row_once_without_dropout(n):
    engine, rows = engine_of(50, dropout=0.5), rows_of(n, seed=4)
    loss, correct, count = engine.score(rows)
    expected_loss, expected_correct, _ = Reference(engine.model.weights()).gradient(*standardised(rows))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert (correct, count) == (expected_correct, n)


def test_scoring_leaves_weights_and_gradients_alone(engine):
    merged_after(engine, 20)
    weights, gradients = engine.store.weights.copy(), engine.store.gradients.copy()
    engine.score(rows_of(30))
    assert np.array_equal(engine.store.weights, weights)
    assert np.array_equal(engine.store.gradients, gradients)
