"""Splits of a pile of rows: disjoint, complete, stratified and always the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.data_parallel.splits import stratified
from tests.once import once

pytestmark = once

SHARES = st.sampled_from([(0.7, 0.1, 0.2), (0.9, 0.1), (0.5, 0.5), (1 / 3, 1 / 3, 1 / 3), (1.0,), (0.99, 0.01)])
LABELS = st.lists(st.integers(0, 255), max_size=300).map(lambda labels: np.array(labels, np.uint8))
FEW_CLASSES = st.lists(st.integers(0, 3), max_size=300).map(lambda labels: np.array(labels, np.int64))


@given(labels=st.one_of(LABELS, FEW_CLASSES), shares=SHARES, seed=st.integers(0, 2**32 - 1))
def test_every_row_is_in_exactly_one_part(labels, shares, seed):
    parts = stratified(labels, shares, seed)
    assert len(parts) == len(shares)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))


@given(labels=LABELS, shares=SHARES, seed=st.integers(0, 2**32 - 1))
def test_rows_ascend_within_a_part(labels, shares, seed):
    for rows in stratified(labels, shares, seed):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


@given(labels=st.one_of(LABELS, FEW_CLASSES), shares=SHARES, seed=st.integers(0, 2**32 - 1))
def test_parts_have_their_share_of_all_rows_and_of_each_class(labels, shares, seed):
    for rows, share in zip(stratified(labels, shares, seed), shares, strict=True):
        assert abs(len(rows) - share * len(labels)) <= 1
        for label in np.unique(labels):
            assert abs((labels[rows] == label).sum() - share * (labels == label).sum()) < 2


def test_the_share_is_kept_where_many_rare_classes_stand_beside_a_common_one():
    labels = np.concatenate([np.zeros(100, int), np.arange(1, 51)])
    train, validation, test = stratified(labels, (0.7, 0.1, 0.2), seed=0)
    assert [(labels[rows] == 0).sum() for rows in (train, validation, test)] == [70, 10, 20]
    assert [len(rows) for rows in (train, validation, test)] == [105, 15, 30]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64])
def test_depends_on_the_labels_and_the_seed_alone(dtype):
    labels = np.random.default_rng(0).integers(0, 10, 500)
    one, again = (stratified(labels.astype(kind), (0.7, 0.1, 0.2), seed=5) for kind in (np.int32, dtype))
    other = stratified(labels, (0.7, 0.1, 0.2), seed=6)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_rows_of_a_class_are_drawn_from_all_over_the_file():
    (half, _) = stratified(np.zeros(1000, int), (0.5, 0.5), seed=0)
    assert abs((half < 500).sum() - 250) < 50
    assert (np.diff(half) == 1).mean() < 0.7  # every second one on average
