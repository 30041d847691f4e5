"""Who owns what: every number belongs to exactly one rank."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.mpi.partition import LINE, block, dealt, share

NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, 2**40))
SIZES = st.integers(1, 70)


@given(n=NUMBERS, size=SIZES)
def test_blocks_follow_each_other_without_a_gap(n, size):
    blocks = [block(n, size, rank) for rank in range(size)]
    assert blocks[0].start == 0
    assert blocks[-1].stop == n
    assert all(one.stop == following.start for one, following in pairwise(blocks))


@given(n=NUMBERS, size=SIZES)
def test_blocks_differ_by_at_most_one_and_the_longer_come_first(n, size):
    lengths = [len(block(n, size, rank)) for rank in range(size)]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(n=st.integers(0, 300), size=SIZES)
def test_dealt_numbers_are_all_numbers_once(n, size):
    hands = [dealt(n, size, rank) for rank in range(size)]
    assert sorted(number for hand in hands for number in hand) == list(range(n))
    assert max(map(len, hands)) - min(map(len, hands)) <= 1


@given(n=st.integers(0, 300), size=SIZES)
def test_neighbours_are_dealt_to_neighbours(n, size):
    for rank in range(size):
        assert all(number % size == rank for number in dealt(n, size, rank))


@given(n=NUMBERS, size=SIZES)
def test_shares_tile_the_numbers_in_whole_lines(n, size):
    shares = [share(n, size, rank) for rank in range(size)]
    assert shares[0].start == 0
    assert shares[-1].stop == n
    assert all(one.stop == following.start for one, following in pairwise(shares))
    assert all(part.start % LINE == 0 or part.start == n for part in shares)
    lengths = [part.stop - part.start for part in shares]
    assert max(lengths) == lengths[0] <= -(-n // size) + LINE
