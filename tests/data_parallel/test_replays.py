"""Passes that are replayed: they come to the same bits, and to nothing where somebody has changed what they rest on."""

from itertools import pairwise

import numpy as np
import pytest

from mpi_parallel.data_parallel import replays
from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.device import Augmentation, Host
from mpi_parallel.device.clock import Clock
from mpi_parallel.device.host import best_kernels
from mpi_parallel.device.openmp import OpenMP
from mpi_parallel.nn.mlp import MLP
from tests.lacking import lacking
from tests.samples import CLASSES, images_and_labels

FEATURES = 12


@pytest.fixture(autouse=True)
def compiled() -> None:
    if not isinstance(best_kernels(), OpenMP):
        lacking("no compiled kernels here: no step is replayed")


def engine_of(replay, dropout=0.0, micro_batch=None, augment=None, precision="float32", widths=(8, 5)):
    """A replica of 60 rows that counts how often Python has gone through the layers."""
    images, labels = images_and_labels(60, 3)
    model = MLP(Host(), (FEATURES, *widths, CLASSES), dropout, seed=1, precision=precision)
    rows = Rows(images.reshape(60, FEATURES), labels.astype(np.int32), Scaler.of(100.0, 60.0), Host(), augment)
    engine = Replica(model, rows, Clock(), micro_batch)
    if replay:
        engine.replay()
    engine.told, forward = 0, model.training.forward

    def counted(*arguments):
        engine.told += 1
        return forward(*arguments)

    model.training.forward = counted
    return engine


def batches(sizes, groups=()):
    """Batches of these sizes, each of rows and keys of its own."""
    random = np.random.default_rng(5)
    for n in sizes:
        edges = [0, *groups, n] if groups else None
        yield Batch(random.integers(0, 60, n), random.integers(0, 2**32, n, np.uint32), edges)


def steps(engine, sizes, groups=(), between=lambda step: None):
    """What the store holds after each group of each batch, the weights going on from one to the next."""
    found = []

    def collect():
        found.append(engine.store.merged.copy())

    for step, batch in enumerate(batches(sizes, groups)):
        between(step)
        engine.run(batch, lambda parameters: None, collect)
        engine.store.weights -= 0.01 * engine.store.gradients
    return np.array(found)


KINDS = {
    "plain": {},
    "dropout": {"dropout": 0.4},
    "micro-batches": {"micro_batch": 4, "dropout": 0.2},
    "augmented": {"augment": Augmentation(4, 3, 1, 1, True, 0.5)},
    "one layer": {"widths": ()},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [(), (0, 3, 5)])
def test_the_same_bits_as_call_by_call(kind, groups):
    sizes = [10, 10, 10, 7, 10, 7, 7, 10, 7, 60, 10, 60, 60, 7]
    replayed, told = engine_of(True, **KINDS[kind]), engine_of(False, **KINDS[kind])
    np.testing.assert_array_equal(*(steps(one, sizes, groups).view(np.uint32) for one in (replayed, told)))
    assert replayed.told < told.told


def test_python_goes_through_the_layers_no_more_once_a_size_is_known():
    engine, counts = engine_of(True), []
    steps(engine, [10] * 4 + [9] * 4 + [10, 9, 0, 0, 0, 0], between=lambda _: counts.append(engine.told))
    told = [after - before for before, after in pairwise([*counts, engine.told])]
    # A first time, a second time because the arena was still to grow, then both ways, and never again.
    assert told == [1, 1, 2, 0, 1, 2, 0, 0, 0, 0, 1, 2, 0, 0]


def test_arrays_that_are_not_the_same_any_more_are_not_written_to():
    """As when a merger takes the store into its window, or an evaluation has the workspace grow."""

    def move(engine):
        store = engine.store
        held = store.weights, store.merged
        store.move(store.weights.copy(), store.merged.copy())
        for array in held:
            array.fill(np.nan)

    def evaluate(engine):
        list(engine.logits(engine.rows))

    for disturb in (move, evaluate):
        results = []
        for replay in (True, False):
            engine = engine_of(replay)
            between = {4: disturb, 9: disturb}
            results.append(steps(engine, [10] * 14, between=lambda n, e=engine, b=between: b.get(n, lambda _: None)(e)))
        np.testing.assert_array_equal(*results)


def test_a_pass_that_does_something_beside_the_kernels_is_not_replayed():
    """Here a layer that halves its output, which the kernels do not know of: its result is what it always was."""

    def halving(engine):
        layer = engine.model.training.layers[0]
        forward = layer.forward

        def half(x, keys=None):
            y, backward = forward(x, keys)
            np.multiply(y, 0.5, out=y)
            return y, backward

        layer.forward = half
        return engine

    results = [steps(halving(engine_of(replay)), [10] * 6) for replay in (True, False)]
    np.testing.assert_array_equal(*results)
    engine = halving(engine_of(True))
    steps(engine, [10] * 6)
    assert not engine.replays.works
    assert engine.told == 6 + 2


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32"])
def test_rounded_factors_are_told_call_by_call(precision):
    engine = engine_of(True, precision=precision)
    steps(engine, [10] * 6)
    assert engine.told == 6


def test_large_networks_and_too_many_sizes_are_told_call_by_call(monkeypatch):
    engine = engine_of(True)
    monkeypatch.setattr(replays, "SIZES", 2)
    steps(engine, [5, 6, 7, 8] * 4)
    assert 2 * 4 + 2 * 3 <= engine.told < 16
    monkeypatch.setattr(replays, "LARGEST", engine.store.size - 1)
    large = engine_of(True)
    steps(large, [10] * 6)
    assert large.told == 6


def test_who_listens_to_the_clock_hears_of_forward_and_backward():
    heard = []

    class Listener:
        def change(self, now, step, name, micro):
            heard.append(name)

    engine = engine_of(True)
    steps(engine, [10] * 5)
    engine.clock.listeners = (Listener(),)
    steps(engine, [10])
    assert heard == ["gather", "forward", "backward", "collect", "other"]


class TestRecorded:
    kernels = best_kernels()

    def test_nothing_is_computed_while_calls_are_written_down(self):
        a, sums = np.ones((4, 3), np.float32), np.zeros(3, np.float32)
        play = self.kernels.recorded(lambda: self.kernels.column_sums(a, sums, True))
        assert sums.tolist() == [0, 0, 0]
        for times in (4, 8):
            play()
            assert sums.tolist() == [times] * 3
        a += 1
        play()
        assert sums.tolist() == [16] * 3

    def test_a_mistake_meanwhile_leaves_the_kernels_as_they_were(self):
        def mistake():
            self.kernels.relu_gradient(np.ones(3, np.float32), np.ones(3, np.float32))
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            self.kernels.recorded(mistake)
        a = np.ones((2, 2), np.float32)
        sums = np.zeros(2, np.float32)
        self.kernels.column_sums(a, sums, False)
        assert sums.tolist() == [2, 2]

    def test_what_is_no_list_of_calls_is_refused(self):
        for refused in (self.kernels.library.record, self.kernels.library.play):
            with pytest.raises(TypeError, match="list"):
                refused(3)

    def test_a_call_that_fails_is_told_when_it_is_made(self):
        play = self.kernels.recorded(lambda: self.kernels.column_sums("a", "b", False))
        with pytest.raises(TypeError, match="wants a NumPy array"):
            play()
