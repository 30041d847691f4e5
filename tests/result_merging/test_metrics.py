"""What is told of a step and of an evaluation."""

import math

import numpy as np
import pytest

from mpi_parallel.nn.store import BAD, CORRECT, COUNT, LOSS, STOP, TAIL
from mpi_parallel.result_merging.metrics import Score, Totals, merge_scores, score
from tests.assembly import world


def tail_of(**sums):
    tail = np.zeros(TAIL, np.float32)
    for name, value in sums.items():
        tail[{"loss": LOSS, "correct": CORRECT, "count": COUNT, "stop": STOP, "bad": BAD}[name]] = value
    return tail


def test_totals_of_a_tail():
    assert Totals.of(tail_of(loss=2.5, correct=7, count=16)) == Totals(2.5, 7, 16, stop=False, finite=True)


def test_the_largest_batch_is_counted_exactly():
    totals = Totals.of(tail_of(correct=2**24 - 1, count=2**24))
    assert (totals.correct, totals.count) == (2**24 - 1, 2**24)


@pytest.mark.parametrize("asked", [1, 2, 4])
def test_stop_when_any_rank_was_asked(asked):
    assert Totals.of(tail_of(count=1, stop=asked)).stop


@pytest.mark.parametrize("sums", [{"loss": math.nan}, {"loss": math.inf}, {"loss": -math.inf}, {"bad": math.nan}])
def test_not_finite_when_the_loss_or_a_gradient_is_not(sums):
    assert not Totals.of(tail_of(count=1, **sums)).finite


def test_score():
    assert score(6.0, 3, 4) == Score(1.5, 0.75, 4)


def test_a_score_of_no_rows_is_zero():
    assert score(0.0, 0, 0) == Score(0.0, 0.0, 0)


@pytest.mark.parallel([1, 2, 3, 4])
def test_scores_are_merged_by_their_rows():
    comm = world()
    rows = 5 * comm.rank  # rank 0 has none
    merged = merge_scores(comm, 2.0 * rows, 3 * comm.rank, rows)
    total = 5 * sum(range(comm.size))
    assert merged == (Score(2.0, 0.6, total) if total else Score(0.0, 0.0, 0))


@pytest.mark.parallel([1, 2, 3, 4])
def test_no_row_is_lost_in_large_sums():
    """Where float32, and a mean of means, would lose some."""
    comm = world()
    merged = merge_scores(comm, 0.0, 2**40 + comm.rank, 2**41 + 1)
    assert merged.count == comm.size * (2**41 + 1)
    assert merged.accuracy == (comm.size * 2**40 + sum(range(comm.size))) / merged.count
