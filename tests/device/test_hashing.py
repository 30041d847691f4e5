"""The hash: a bijection that scatters, and the same bits for ever, as orders and masks of old runs depend on them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device.hashing import combine, combine_int, mix
from tests.once import once

pytestmark = once

WORDS = st.integers(0, 2**32 - 1)
BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)


def lowbias32(x: int) -> int:
    """As its author published it."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def lowbias32_inverse(x: int) -> int:
    x ^= x >> 16
    x = x * pow(0x846CA68B, -1, 2**32) % 2**32
    x ^= x >> 15 ^ x >> 30
    x = x * pow(0x7FEB352D, -1, 2**32) % 2**32
    return x ^ x >> 16


def mix_one(x: int) -> int:
    return int(mix(np.array([x], np.uint32))[0])


def flips(outputs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How often each of the 32 bits differs between two arrays of words (n, ...)."""
    return (((outputs ^ others)[..., None] & BITS) != 0).mean(axis=0)


@given(WORDS)
def test_mix_is_lowbias32_and_has_an_inverse(x):
    assert mix_one(x) == lowbias32(x)
    assert lowbias32_inverse(mix_one(x)) == x


def test_no_two_of_many_words_mix_to_the_same():
    mixed = mix(np.arange(2**17, dtype=np.uint32))
    assert mixed.dtype == np.uint32
    assert np.unique(mixed).size == 2**17


def test_mix_leaves_its_argument_alone():
    words = np.arange(5, dtype=np.uint32)
    mix(words)
    assert words.tolist() == [0, 1, 2, 3, 4]


def test_avalanche_of_mix():
    """Each bit of the input turns each bit of the output in half of the cases; 1 / 64 is four deviations."""
    x_N = np.random.default_rng(1).integers(2**32, size=2**14, dtype=np.uint32)
    assert np.abs(flips(mix(x_N)[:, None], mix(x_N[:, None] ^ BITS)) - 0.5).max() < 1 / 64


@pytest.mark.parametrize("changed", [0, 1])
def test_avalanche_of_combine(changed):
    words_2N = np.random.default_rng(2).integers(2**32, size=(2, 2**14, 1), dtype=np.uint32)
    others_2N32 = np.broadcast_to(words_2N, (2, 2**14, 32)).copy()
    others_2N32[changed] ^= BITS
    assert np.abs(flips(combine(*words_2N), combine(*others_2N32)) - 0.5).max() < 1 / 64


def test_combine_broadcasts_and_tells_its_arguments_apart():
    a_A1, b_B = np.arange(50, dtype=np.uint32)[:, None], np.arange(60, dtype=np.uint32)
    table_AB = combine(a_A1, b_B)
    assert table_AB.shape == (50, 60)
    assert table_AB[7, 9] == combine(a_A1[7], b_B[9:10])[0]
    assert np.unique(table_AB).size == table_AB.size  # by chance a pair is alike in one of 1,000 such tables


def test_hashes_of_plain_numbers_depend_on_each_word_its_place_and_their_count():
    some = [(), (0,), (0, 0), (0, 0, 0), (1,), (0, 1), (1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32 - 1,)]
    assert len({combine_int(*words) for words in some}) == len(some)
    assert all(0 <= combine_int(*words) < 2**32 for words in some)


@given(WORDS, st.lists(WORDS, max_size=3))
def test_no_two_last_words_give_the_same_hash(last, words):
    assert combine_int(*words, last) != combine_int(*words, last ^ 1)


def test_neighbouring_seeds_and_epochs_give_unrelated_bits():
    hashes = np.array([combine_int(1, seed, epoch) for seed in range(128) for epoch in range(128)], np.uint32)
    assert np.unique(hashes).size == hashes.size
    assert np.abs(flips(hashes[1:], hashes[:-1]) - 0.5).max() < 1 / 64


def test_the_bits_are_those_of_every_earlier_version():
    words = np.arange(3, dtype=np.uint32)
    assert mix(words).tolist() == [0, 1753845952, 3507691905]
    assert combine(words, words[::-1]).tolist() == [3507691905, 3529208806, 911671261]
    assert [combine_int(), combine_int(0), combine_int(1, 2, 3)] == [0, 4282259411, 1308084459]
