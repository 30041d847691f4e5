"""The order of samples: pure functions of (seed, epoch, position), in which every rank finds its own part."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mpi_parallel.data_parallel.order import NUMPY, ORDER, Positions
from mpi_parallel.device.hashing import combine_int, permute
from mpi_parallel.device.host import best_kernels
from mpi_parallel.mpi.partition import block, dealt

WORDS = st.integers(0, 2**32 - 1)
TOTALS = st.integers(0, 400)
SHARDS = st.integers(1, 70)
RANKS = st.integers(1, 7)


def shard_order(n: int, shard: int, seed: int, epoch: int):
    """The shard's rows (from 0, within the shard of n rows) in the order in which the epoch has to use them."""
    return permute(np.arange(n), n, combine_int(ORDER, seed, epoch, shard))


def rows_in_order(total: int, of: int, ranks: int, rank: int, seed: int, epoch: int):
    """(positions, rows of the training split at them) of one rank's shards."""
    shards = dealt(of, ranks, rank)
    held = np.array([row for shard in shards for row in block(total, of, shard)], np.int64)
    positions = Positions(shards, total, of, best_kernels())
    return positions.numbers(), held[positions.rows(seed, epoch)]


def whole_order(total: int, of: int, ranks: int, seed: int, epoch: int):
    """(total,) the row at each position, put together from the ranks' parts; -1 where no rank has one."""
    order = np.full(total, -1)
    for rank in range(ranks):
        positions, rows = rows_in_order(total, of, ranks, rank, seed, epoch)
        assert (order[positions] == -1).all(), "two ranks have the same position"
        order[positions] = rows
    return order


class TestPermutation:
    @given(n=st.one_of(st.integers(1, 70), st.integers(1, 5000)), key=WORDS)
    def test_is_a_bijection(self, n, key):
        image = permute(np.arange(n), n, key)
        assert np.array_equal(np.sort(image), np.arange(n))

    @pytest.mark.parametrize("n", [4**h + d for h in range(1, 9) for d in (-1, 0, 1)])
    def test_is_a_bijection_around_the_powers_of_four_where_the_network_grows(self, n):
        assert np.array_equal(np.sort(permute(np.arange(n), n, 7)), np.arange(n))

    @pytest.mark.parametrize("n", [2**31 - 1, 2**31 + 11, 2**32])
    def test_stays_in_range_and_apart_where_n_fills_the_words(self, n):
        places = np.concatenate([np.arange(5000), np.arange(n - 5000, n)])
        image = permute(places, n, 1)
        assert image.min() >= 0 and image.max() < n
        assert len(np.unique(image)) == len(places)

    def test_of_no_places_is_empty(self):
        assert permute(np.arange(0), 0, 5).shape == (0,)

    @given(n=st.integers(1, 200), keys=st.tuples(WORDS, WORDS))
    def test_takes_a_key_for_each_place(self, n, keys):
        both = permute(np.tile(np.arange(n), 2), n, np.repeat(np.array(keys, np.uint32), n))
        assert np.array_equal(both, np.concatenate([permute(np.arange(n), n, key) for key in keys]))

    @pytest.mark.parametrize("n", [3, 5, 17, 40])
    def test_sends_a_place_anywhere_equally_often_over_the_keys(self, n):
        keys = np.arange(400 * n, dtype=np.uint32)
        for place in (0, n // 2, n - 1):
            times = np.bincount(permute(np.full(len(keys), place), n, keys), minlength=n)
            chi2 = ((times - 400) ** 2 / 400).sum()
            assert chi2 < (n - 1) + 5 * np.sqrt(2 * (n - 1))

    @pytest.mark.parametrize("n", [64, 187, 1000, 10007])
    def test_neighbours_have_nothing_to_do_with_each_other(self, n):
        for key in range(20):
            image = permute(np.arange(n), n, key)
            for lag in (1, 2, 3):
                assert abs(np.corrcoef(image[lag:], image[:-lag])[0, 1]) < 5 / np.sqrt(n)
            assert abs(np.corrcoef(image, np.arange(n))[0, 1]) < 5 / np.sqrt(n)


class TestEpoch:
    @given(total=TOTALS, of=SHARDS, ranks=RANKS, seed=WORDS, epoch=st.integers(0, 10**6))
    def test_every_row_is_used_exactly_once(self, total, of, ranks, seed, epoch):
        order = whole_order(total, of, ranks, seed, epoch)
        assert np.array_equal(np.sort(order), np.arange(total))

    @given(total=TOTALS, of=SHARDS, ranks=RANKS, seed=WORDS, epoch=st.integers(0, 10**6))
    def test_does_not_depend_on_the_ranks(self, total, of, ranks, seed, epoch):
        one = whole_order(total, of, 1, seed, epoch)
        assert np.array_equal(whole_order(total, of, ranks, seed, epoch), one)

    @given(total=TOTALS, of=SHARDS, ranks=RANKS, rank=st.integers(0, 6))
    def test_positions_ascend(self, total, of, ranks, rank):
        assume(rank < ranks)
        positions = Positions(dealt(of, ranks, rank), total, of).numbers()
        assert (np.diff(positions) > 0).all()

    @given(total=st.integers(1, 400), of=SHARDS)
    def test_the_shards_take_turns(self, total, of):
        order = whole_order(total, of, 1, 3, 2)
        for position, row in enumerate(order):
            assert row in block(total, of, position % of)

    def test_a_file_sorted_by_class_gives_mixed_steps(self):
        classes = np.repeat(np.arange(10), 600)
        labels = classes[whole_order(6000, 64, 1, 0, 0)].reshape(-1, 60 * 2)
        for step in labels:
            assert np.bincount(step, minlength=10).min() >= 4  # 12 on average

    def test_epochs_seeds_and_shards_differ(self):
        orders = [
            shard_order(100, shard, seed, epoch)
            for shard in range(3)
            for seed in (0, 1, 2**32 - 1)
            for epoch in range(3)
        ]
        for number, order in enumerate(orders):
            for other in orders[:number]:
                assert (order == other).sum() < 12  # one on average

    @given(total=st.integers(1, 400), of=SHARDS, seed=WORDS, epoch=st.integers(0, 10**6))
    def test_each_shard_is_in_its_own_order(self, total, of, seed, epoch):
        order = whole_order(total, of, 1, seed, epoch)
        for shard in range(of):
            rows = block(total, of, shard)
            assert np.array_equal(order[shard::of] - rows.start, shard_order(len(rows), shard, seed, epoch))

    def test_epochs_are_uncorrelated(self):
        orders = np.stack([shard_order(1000, 0, 0, epoch) for epoch in range(20)])
        off_diagonal = np.corrcoef(orders)[~np.eye(20, dtype=bool)]
        assert abs(off_diagonal).max() < 5 / np.sqrt(1000)


def keys_of_all(total, seed, epoch):
    return Positions(range(3), total, 3).keys(seed, epoch)


class TestKeys:
    @given(seed=WORDS, epoch=st.integers(0, 10**6))
    def test_name_each_position_of_an_epoch(self, seed, epoch):
        keys = keys_of_all(2000, seed, epoch)
        assert keys.dtype == np.uint32
        assert len(np.unique(keys)) == 2000

    def test_of_some_positions_are_those_of_all(self):
        some = Positions([1, 4], 100, 7)
        assert np.array_equal(some.keys(5, 6), keys_of_all(100, 5, 6)[some.numbers()])

    def test_differ_between_epochs_and_seeds(self):
        keys = [keys_of_all(1000, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
        assert len(np.unique(keys)) > 3990  # four in 2^32 may meet


@given(st.integers(1, 200), st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.integers(1, 7))
def test_groups_of_a_step_do_not_depend_on_the_ranks(total, batch_size, groups, ranks):
    """Each group's positions of each step, from whichever rank owns it: p mod groups, ascending."""
    shards = 16
    steps = -(-total // batch_size)
    seen = {}
    for rank in range(ranks):
        own = block(groups, ranks, rank)
        mine = [shard for shard in range(shards) if shard % groups in own]
        positions = Positions(mine, total, shards)
        sequence, edges = positions.steps(range(total), batch_size, groups, own)
        assert len(edges) == steps
        for step, cuts in enumerate(edges):
            for group, (start, stop) in zip(own, pairwise(cuts), strict=True):
                seen[step, group] = positions.numbers()[sequence][start:stop].tolist()
    for step in range(steps):
        span = range(step * batch_size, min((step + 1) * batch_size, total))
        for group in range(groups):
            assert seen.pop((step, group)) == [p for p in span if p % groups == group]
    assert not seen


@given(st.integers(1, 400), SHARDS, RANKS, st.integers(1, 50), st.data())
def test_a_span_is_a_part_of_the_whole(total, of, ranks, batch_size, data):
    """All of a span, by whichever kernels, is what the whole epoch has there, and the edges are those of its steps."""
    first = data.draw(st.integers(0, (total - 1) // batch_size))
    span = range(first * batch_size, min(total, (first + data.draw(st.integers(1, 9))) * batch_size))
    rank = data.draw(st.integers(0, ranks - 1))
    for kernels in (NUMPY, best_kernels()):
        own = Positions(dealt(of, ranks, rank), total, of, kernels)
        numbers = own.numbers()
        there = (numbers >= span.start) & (numbers < span.stop)
        assert np.array_equal(own.numbers(span), numbers[there])
        assert np.array_equal(own.rows(1, 2, span), own.rows(1, 2)[there])
        assert np.array_equal(own.keys(1, 2, span), own.keys(1, 2)[there])
        assert np.diff(own.below(span.start, span.stop)) == there.sum()
        sequence, edges = own.steps(span, batch_size)
        steps = [numbers[there][sequence][start:stop].tolist() for start, stop in edges]
        assert steps == [
            [p for p in numbers if t * batch_size <= p < (t + 1) * batch_size]
            for t in range(first, -(-span.stop // batch_size))
        ]
