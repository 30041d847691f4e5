"""Counts of right and wrong against scikit-learn, on any number of ranks."""

import numpy as np
import pytest
from mpi4py import MPI
from scipy.special import softmax
from sklearn import metrics

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block
from mpi_parallel.result_merging.confusion import Tally

ROWS, CLASSES = 400, 7


@pytest.fixture(scope="module")
def rows():
    """Logits (coarse, so that some are equal) and classes; class 5 is never there, 6 never predicted."""
    rng = np.random.default_rng(0)
    z = np.round(rng.normal(size=(ROWS, CLASSES)), 1).astype(np.float32)
    z[:, 6] = -9
    t = rng.choice([0, 1, 2, 3, 4, 6], ROWS).astype(np.int32)
    z[np.arange(ROWS), t] += np.where(t == 6, 0, 1)
    return z, t


def evaluated(z, t, comm):
    """What the ranks of comm find together, in batches."""
    tally, mine = Tally(z.shape[1]), block(len(t), comm.size, comm.rank)
    for start in range(mine.start, mine.stop, 64):
        part = slice(start, min(start + 64, mine.stop))
        tally.add(z[part], t[part])
    return tally.merge(comm)


@pytest.mark.parallel([1, 2, 3, 4])
def test_agrees_with_scikit_learn(rows):
    z, t = rows
    found, chosen = evaluated(z, t, Communicator(MPI.COMM_WORLD)), z.argmax(axis=1)
    every = np.arange(CLASSES)
    assert (found.matrix == metrics.confusion_matrix(t, chosen, labels=every)).all()
    precision, recall, f1, support = metrics.precision_recall_fscore_support(t, chosen, labels=every, zero_division=0)
    for mine, theirs in zip((found.precision, found.recall, found.f1), (precision, recall, f1), strict=True):
        assert np.allclose(mine, theirs, rtol=1e-15)
    assert (found.support == support).all()
    assert found.accuracy == metrics.accuracy_score(t, chosen)
    assert np.isclose(found.loss, metrics.log_loss(t, softmax(z.astype(np.float64), axis=1), labels=every), atol=1e-6)
    for weighted, average in ((False, "macro"), (True, "weighted")):
        theirs = metrics.f1_score(t, chosen, average=average, zero_division=0)
        assert np.isclose(found.mean(found.f1, weighted), theirs, rtol=1e-14)


@pytest.mark.parallel(1)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_agrees_with_scikit_learn(k):
    """Of logits that all differ: where some are equal scikit-learn takes the higher class first."""
    rng = np.random.default_rng(1)
    z, t = rng.normal(size=(ROWS, CLASSES)).astype(np.float32), rng.integers(0, CLASSES, ROWS).astype(np.int32)
    found = evaluated(z, t, Communicator(MPI.COMM_SELF))
    assert found.top(k) == metrics.top_k_accuracy_score(t, z, k=k)


@pytest.mark.parallel([2, 3, 4])
def test_is_the_same_on_any_number_of_ranks(rows):
    many, one = (evaluated(*rows, Communicator(comm)) for comm in (MPI.COMM_WORLD, MPI.COMM_SELF))
    for name in ("support", "predicted", "correct", "places", "matrix"):
        assert (getattr(many, name) == getattr(one, name)).all()
    assert abs(many.loss - one.loss) < 1e-6  # here the batches differ with the ranks, in evaluate they do not


def test_the_worst_mistakes_come_first(rows):
    found = evaluated(*rows, Communicator(MPI.COMM_SELF))
    pairs = found.confused(5)
    counts = [count for _, _, count in pairs]
    assert counts == sorted(counts, reverse=True)
    assert all(found.matrix[t, p] == count and t != p for t, p, count in pairs)


def test_no_rows_at_all():
    found = Tally(3).merge(Communicator(MPI.COMM_SELF))
    assert (found.count, found.accuracy, found.loss, found.top(2)) == (0, 0, 0, 0)
    assert found.f1.tolist() == [0, 0, 0]


def test_very_many_classes_are_counted_without_a_matrix():
    tally = Tally(100_000)
    tally.add(np.eye(2, 100_000, dtype=np.float32), np.array([0, 7], np.int32))
    found = tally.merge(Communicator(MPI.COMM_SELF))
    assert found.matrix is None
    assert (found.accuracy, found.top(8), found.confused(3)) == (0.5, 1.0, [])
