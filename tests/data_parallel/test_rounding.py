"""What float32 does to numbers that were text, told from whole features, however the rows come to the ranks."""

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpi4py import MPI
from sklearn.preprocessing import StandardScaler

from mpi_parallel.data_parallel.rounding import Rounding
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block
from tests.data_parallel.test_conversion import RANKS, on_rank_0, run, small_units, write_csv  # noqa: F401

WORLD = Communicator(MPI.COMM_WORLD)
FEATURES = {
    "around zero": lambda rng, n: rng.normal(size=n),
    "as temperatures": lambda rng, n: rng.normal(300, 10, n),
    "far": lambda rng, n: rng.normal(1e6, 1, n),
    "a step": lambda rng, n: np.where(np.arange(n) < n // 2, 1e8, 1e8 + 1.5),
    "constant": lambda rng, n: np.full(n, 0.1),
    "constant and large": lambda rng, n: np.full(n, 1e9 + 1),
    "an outlier": lambda rng, n: np.where(np.arange(n) == 3, 0, 100_000.003),
    "tiny": lambda rng, n: rng.normal(0, 1e-50, n),
    "huge": lambda rng, n: rng.normal(0, 1e50, n),
    "bytes": lambda rng, n: rng.integers(0, 256, n).astype(float),
}
SHORT = ("around zero", "as temperatures", "constant", "constant and large", "an outlier", "bytes")


def harmless(table: np.ndarray, size: int, rank: int, comm: Communicator) -> bool:
    """What the ranks find when they see rows of the table one by one."""
    rounding = Rounding(table.shape[1])
    for row in block(len(table), size, rank):
        rounding.see(table[row : row + 1])
    return rounding.harmless(comm)


@RANKS
@given(names=st.lists(st.sampled_from(sorted(FEATURES)), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_float32_is_taken_where_it_leaves_the_moments_as_they_are(names, seed):
    rng = np.random.default_rng(seed)
    table = np.stack([FEATURES[name](rng, 50) for name in names], axis=1)
    short = harmless(table, WORLD.size, WORLD.rank, WORLD)
    assert short == all(name in SHORT for name in names)
    assert short == harmless(table, 1, 0, Communicator(MPI.COMM_SELF))
    if short:
        exact, ours = StandardScaler().fit(table), StandardScaler().fit(table.astype(np.float32).astype(np.float64))
        np.testing.assert_allclose(ours.mean_, exact.mean_, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours.scale_, exact.scale_, rtol=1e-6)


@pytest.mark.usefixtures("small_units")
@RANKS
@pytest.mark.parametrize("name", ["far", "a step", "constant"])
def test_a_table_is_as_exact_as_its_text(shared_path, name):
    """Units of some rows, in which a feature that has a step is constant, make one file of one type."""
    rng, to = np.random.default_rng(0), shared_path / "rows.h5"
    table = np.stack([FEATURES[name](rng, 120), *rng.integers(0, 256, (5, 120)).astype(float)], axis=1)
    on_rank_0(lambda: write_csv(shared_path / "rows.csv", table, np.arange(120) % 3))
    run(shared_path / "rows.csv", "--to", to, "--split", 1)
    with h5py.File(to) as file:
        images = file["train/images"][...]
        exact = StandardScaler().fit(table)
        np.testing.assert_allclose(file.attrs["mean"], exact.mean_, rtol=1e-6)
        np.testing.assert_allclose(file.attrs["std"], exact.scale_, rtol=1e-6)
    np.testing.assert_array_equal(images, table.astype(np.float32 if name == "constant" else np.float64))
