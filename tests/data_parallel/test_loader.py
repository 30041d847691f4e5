"""Rows in memory: each rank holds its shards and no more, and the ranks' batches together are the serial ones."""

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpi4py import MPI

from mpi_parallel.data_parallel.evaluation import EVALUATION_ROWS
from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.order import Positions
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.data_parallel.split import Split
from mpi_parallel.device import Host
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.mpi.partition import block
from tests.assembly import ALONE, assemble, world
from tests.samples import images_and_labels, write_image_set

# rows, shards, batch size: even and uneven, a short last batch, shards without rows, ranks without shards, one batch
CASES = [(64, 8, 16), (61, 8, 16), (23, 64, 5), (40, 2, 7), (40, 1, 7), (20, 64, 3), (12, 5, 1000)]


def numbered(path, rows, test=7):
    """A file whose row n holds n in every pixel and n mod 3 as its label."""
    with h5py.File(path, "w") as file:
        for split, n in (("train", rows), ("test", test)):
            file[f"{split}/images"] = np.repeat(np.arange(n, dtype=np.uint16), 12).reshape(n, 3, 4)
            file[f"{split}/labels"] = np.arange(n) % 3
    return path


def steps_of(run, epoch):
    """(rows of the file, keys) of each step of an epoch, of all ranks by position."""
    steps = []
    for batch in run.training.epoch(epoch, run.batch_size):
        mine = run.training.rows.images[batch.index, 0].astype(np.int64)
        parts = run.comm.comm.allgather((mine, batch.keys))
        steps.append(tuple(np.concatenate(part) for part in zip(*parts, strict=True)))
    return steps


@pytest.fixture
def path(shared_path):
    """A path for a file, another one on each rank: none has to wait until another has written it."""
    return shared_path / f"set-{MPI.COMM_WORLD.rank}.h5"


@pytest.mark.parametrize(("rows", "shards", "batch_size"), CASES)
class TestEpoch:
    @pytest.mark.parallel([1, 2, 3, 4])
    def test_uses_every_row_once(self, path, rows, shards, batch_size):
        run = assemble(numbered(path, rows), world(), shards=shards, batch_size=batch_size)
        for epoch in range(2):
            used = np.concatenate([step for step, _ in steps_of(run, epoch)])
            assert np.array_equal(np.sort(used), np.arange(rows))

    @pytest.mark.parallel([1, 2, 3, 4])
    def test_steps_are_those_of_one_rank(self, path, rows, shards, batch_size):
        numbered(path, rows)
        together, alone = (
            steps_of(assemble(path, comm, shards=shards, batch_size=batch_size), 1) for comm in (world(), ALONE)
        )
        assert len(together) == len(alone) == -(-rows // batch_size)
        for (rows_here, keys_here), (rows_there, keys_there) in zip(together, alone, strict=True):
            here = sorted(zip(rows_here.tolist(), keys_here.tolist(), strict=True))
            assert here == sorted(zip(rows_there.tolist(), keys_there.tolist(), strict=True))

    @pytest.mark.parallel([1, 2, 3, 4])
    def test_keys_name_each_row_by_its_position_in_the_epoch(self, path, rows, shards, batch_size):
        run, epoch = assemble(numbered(path, rows), world(), shards=shards, batch_size=batch_size, seed=5), 3
        used = [np.concatenate(parts) for parts in zip(*steps_of(run, epoch), strict=True)]
        alone = Positions(range(shards), rows, shards)  # of one rank, whose rows are those of the file
        expected = dict(zip(alone.rows(5, epoch).tolist(), alone.keys(5, epoch).tolist(), strict=True))
        assert dict(zip(*(part.tolist() for part in used), strict=True)) == expected

    @pytest.mark.parallel([1, 2, 3, 4])
    def test_only_the_last_step_is_short(self, path, rows, shards, batch_size):
        run = assemble(numbered(path, rows), world(), shards=shards, batch_size=batch_size)
        sizes = [len(step) for step, _ in steps_of(run, 0)]
        assert len(sizes) == run.training.steps(batch_size)
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
        assert sizes[-1] == rows - batch_size * (len(sizes) - 1)


@pytest.mark.parallel([1, 2, 3, 4])
def test_steps_draw_evenly_from_the_ranks(path):
    """With as many ranks as divide the shards, no rank has more than a row a shard more than another."""
    run = assemble(numbered(path, 600), world(), shards=12, batch_size=24)
    for batch in run.training.epoch(0, 24):
        assert run.comm.gather(np.array([len(batch.index)])).tolist() == [[24 // run.comm.size]] * run.comm.size


@pytest.mark.parallel([1, 2, 3, 4])
def test_a_rank_reads_its_shards_and_its_blocks_alone(path, monkeypatch):
    asked = {"train/images": [], "test/images": []}
    read = Split.read
    monkeypatch.setattr(
        Split, "read", lambda split, part, *to: [asked[split.images].append(part), read(split, part, *to)][1]
    )
    comm, rows = world(), 3 * EVALUATION_ROWS + 7
    assemble(numbered(path, 50, rows), comm, shards=6)
    assert asked["train/images"] == [block(50, 6, shard) for shard in range(comm.rank, 6, comm.size)]
    blocks = block(4, comm.size, comm.rank)
    assert asked["test/images"] == [range(blocks.start * EVALUATION_ROWS, min(blocks.stop * EVALUATION_ROWS, rows))]


@pytest.mark.parallel([2, 3, 4])
def test_evaluation_rows_are_all_rows_once_even_with_fewer_rows_than_ranks(path):
    for rows in (1, 30, 2 * EVALUATION_ROWS + 3):
        run = assemble(write_image_set(path, test=rows), world())
        images = np.concatenate(run.comm.comm.allgather(run.test.images))
        labels = np.concatenate(run.comm.comm.allgather(run.test.labels))
        np.testing.assert_array_equal(images, images_and_labels(rows, seed=2)[0].reshape(rows, -1))
        np.testing.assert_array_equal(labels, images_and_labels(rows, seed=2)[1])


@pytest.mark.parallel([1, 2, 3, 4])
def test_classes_are_counted_over_all_splits_and_ranks(path):
    write_image_set(path)
    for split, row in (("train", 59), ("test", 0)):
        with h5py.File(path, "a") as file:
            file[f"{split}/labels"][row] = 11 if split == "train" else 17
        assert assemble(path, world()).model.widths[-1] == (12 if split == "train" else 18)
    with h5py.File(path, "a") as file:
        file.attrs["classes"] = [f"class {number}" for number in range(20)]
    assert assemble(path, world()).model.widths[-1] == 20


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_rows_stay_in_the_type_of_the_file(path, dtype):
    run = assemble(write_image_set(path, dtype=dtype), world())
    assert run.training.rows.images.dtype == run.test.images.dtype == dtype


@pytest.mark.parallel([1, 3])
def test_moments_of_the_file_come_before_those_of_its_rows(path):
    said = assemble(write_image_set(path, attributes={"mean": 50.0, "std": 4.0}), world()).training.scaler
    assert (said.mean.tolist(), said.std.tolist()) == ([50], [4])
    found = assemble(write_image_set(path), world()).training.scaler
    images = images_and_labels(60)[0].reshape(60, -1).astype(float)
    np.testing.assert_allclose(found.mean, images.mean(axis=0))
    np.testing.assert_allclose(found.std, images.std(axis=0))


class TestGather:
    @pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u8", "f2", "f4", "f8"])
    @pytest.mark.parametrize("features", [1, 12], ids=["scalar", "by feature"])
    def test_standardises_the_listed_rows(self, dtype, features):
        images_NF = images_and_labels(30)[0].reshape(30, -1).astype(dtype)
        labels_N = np.arange(30, dtype=np.int32)
        mean, std = np.linspace(5, 90, features), np.linspace(0.5, 60, features)
        host = Host()
        rows, index = Rows(images_NF, labels_N, Scaler.of(mean, std), host), np.array([29, 0, 7, 7, 3])
        x_BF, t_B = rows.gather(Workspace(host), index)
        np.testing.assert_allclose(x_BF, (images_NF[index].astype(float) - mean) / std, rtol=1e-5, atol=1e-5)
        assert t_B.tolist() == index.tolist()
        assert (x_BF.dtype, t_B.dtype) == (np.float32, np.int32)

    @pytest.mark.parametrize("held", [0, 5])
    def test_no_rows(self, held):
        host = Host()
        rows = Rows(
            np.zeros((held, 12), np.uint8), np.zeros(held, np.int32), Scaler.of(np.zeros(12), np.ones(12)), host
        )
        x_BF, t_B = rows.gather(Workspace(host), np.zeros(0, np.int64))
        assert (x_BF.shape, t_B.shape) == ((0, 12), (0,))


class TestMicroBatches:
    @given(rows=st.integers(0, 40), size=st.one_of(st.none(), st.integers(1, 50)))
    def test_are_the_batch_in_order(self, rows, size):
        batch = Batch(np.arange(rows), np.arange(rows, dtype=np.uint32) + 100)
        parts = list(batch.parts(size))
        assert np.array_equal(np.concatenate([part.index for part in parts]), batch.index)
        assert np.array_equal(np.concatenate([part.keys for part in parts]), batch.keys)
        assert all(len(part.index) <= (size or 40) for part in parts)
        assert len(parts) == (max(1, -(-rows // size)) if size else 1)
