"""Standardisation, against scikit-learn and against itself on other numbers of ranks."""

import numpy as np
import pytest
from mpi4py import MPI
from sklearn.preprocessing import StandardScaler

from mpi_parallel.data_parallel.scaling import SLAB, Scaler, moments, standardise
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block, dealt
from mpi_parallel.options import InputError

RNG = np.random.default_rng(0)
ROWS = {
    "uint8": RNG.integers(0, 256, (500, 12)).astype(np.uint8),
    "float32 far from zero": (RNG.normal(0, 1, (500, 12)) + 1e4).astype(np.float32),
    "float64 far from zero": RNG.normal(0, 1e-3, (500, 12)) + 1e6,
    "int16 of both signs": RNG.integers(-3000, 3000, (500, 12)).astype(np.int16),
    "uint16 near its end": RNG.integers(65000, 65536, (500, 12)).astype(np.uint16),
    "scales apart": RNG.normal(0, 10.0 ** np.arange(-6, 6), (500, 12)),
}


def scaler_of(rows_NF, shards, comm):
    """The scaler of rows that are cut into `shards` shards and dealt to the ranks of `comm`."""
    mine = {
        shard: rows_NF[slice(part.start, part.stop)]
        for shard in dealt(shards, comm.size, comm.rank)
        for part in [block(len(rows_NF), shards, shard)]
    }
    lengths = [len(block(len(rows_NF), shards, shard)) for shard in range(shards)]
    return standardise(mine, lengths, rows_NF.shape[1], comm)


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("shards", [1, 3, 64, 700])
@pytest.mark.parametrize("kind", ROWS)
def test_agrees_with_scikit_learn(kind, shards):
    rows_NF = ROWS[kind]
    ours, theirs = scaler_of(rows_NF, shards, Communicator(MPI.COMM_WORLD)), StandardScaler().fit(rows_NF)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-6)
    np.testing.assert_allclose(ours.std, theirs.scale_, rtol=1e-6)


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("kind", ROWS)
def test_is_the_same_bits_on_any_number_of_ranks(kind):
    world, alone = Communicator(MPI.COMM_WORLD), Communicator(MPI.COMM_SELF)
    together, serial = (scaler_of(ROWS[kind], 7, comm) for comm in (world, alone))
    assert together.mean.tobytes() == serial.mean.tobytes()
    assert together.std.tobytes() == serial.std.tobytes()


@pytest.mark.parallel([1, 3])
def test_takes_more_features_than_are_exchanged_at_a_time():
    n = 2 * SLAB + 5
    rows_NF = np.random.default_rng(1).integers(0, 256, (9, n)).astype(np.uint8)
    ours, theirs = scaler_of(rows_NF, 4, Communicator(MPI.COMM_WORLD)), StandardScaler().fit(rows_NF)
    assert ours.mean.shape == ours.std.shape == (n,)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-6)
    np.testing.assert_allclose(ours.std, theirs.scale_, rtol=1e-6)


@pytest.mark.parametrize("shards", [1, 6, 64])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_constant_features_are_shifted_and_not_scaled(dtype, shards):
    row_F = (
        np.array([0, 3, 200, 0.1, 1 / 3, 123.456, 1e6 / 3]).clip(0, 255 if dtype is np.uint8 else None).astype(dtype)
    )
    scaler = scaler_of(np.tile(row_F, (1000, 1)), shards, Communicator(MPI.COMM_SELF))
    assert scaler.std.tolist() == [1] * 7
    assert scaler.mean.tolist() == row_F.tolist()


@pytest.mark.parallel([1, 2, 3])
def test_numbers_whose_squares_overflow_are_told():
    rows_NF = RNG.normal(0, 1, (60, 3)) * [1, 1e200, 1]
    with pytest.raises(InputError, match="first in feature 1: numbers beyond 1e150 cannot be standardised"):
        scaler_of(rows_NF, 7, Communicator(MPI.COMM_WORLD))
    assert np.isfinite(scaler_of(rows_NF / [1, 1e60, 1], 7, Communicator(MPI.COMM_WORLD)).std).all()


def test_one_row_is_its_own_mean():
    scaler = scaler_of(np.array([[7.0, 9.0]]), 64, Communicator(MPI.COMM_SELF))
    assert scaler.mean.tolist() == [7, 9]
    assert scaler.std.tolist() == [1, 1]


def test_a_file_may_give_one_number_for_all_features():
    scaler = Scaler.of(np.float64(72.9), np.float64(0))
    assert scaler.mean.tolist() == [72.9]
    assert scaler.std.tolist() == [1]


def test_moments_leave_the_rows_alone():
    rows_NF = RNG.normal(0, 1, (20, 3))
    before = rows_NF.copy()
    mean, squares = moments(rows_NF)
    np.testing.assert_array_equal(rows_NF, before)
    np.testing.assert_allclose(mean, rows_NF.mean(axis=0))
    np.testing.assert_allclose(squares / 20, rows_NF.var(axis=0))
