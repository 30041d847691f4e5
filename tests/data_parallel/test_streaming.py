"""Streaming: every sample once an epoch, in an order that ranks and memory do not change, in bounded memory."""

import threading
from itertools import islice

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi4py import MPI

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.data_parallel.evaluation import evaluation_rows
from mpi_parallel.data_parallel.loader import TrainingRows, class_count
from mpi_parallel.data_parallel.memory import Budget
from mpi_parallel.data_parallel.order import Positions
from mpi_parallel.data_parallel.streaming import stream_in_order, stream_shuffled
from mpi_parallel.data_parallel.windows import Cut, cut_of, row_bytes, shuffled
from mpi_parallel.device import Host
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block, dealt
from mpi_parallel.options import InputError
from tests.assembly import ALONE, world
from tests.samples import write_image_set

ROW = 12 * 2 + 4  # bytes of a row of `numbered`


def numbered(path, rows, chunk=None, pile=False, **attributes):
    """A file whose row n holds n in every pixel and n mod 3 as its label."""
    images = np.repeat(np.arange(rows, dtype=np.uint16), 12).reshape(rows, 3, 4)
    with h5py.File(path, "w") as file:
        for group in ("",) if pile else ("train/", "test/"):
            chunks = {"chunks": (min(chunk, rows), 3, 4), "compression": "gzip"} if chunk else {}
            file.create_dataset(f"{group}images", data=images, **chunks)
            file[f"{group}labels"] = np.arange(rows) % 3
        file.attrs.update(attributes)
    return path


def split_of(path, seed=0):
    return open_image_set(DataOptions(data=str(path)), seed, ALONE).train


def rows_of(stream, epoch, at_once=1000):
    """The rows of the file that an epoch takes from a stream of `numbered`, in their order."""
    stream.start(epoch)
    rows, left = [], sum(stream.lengths)
    while left:
        slots = stream.take(min(left, at_once))
        assert np.array_equal(stream.buffers.labels[slots], stream.buffers.images[slots, 0] % 3)
        rows.append(stream.buffers.images[slots, 0].astype(np.int64))
        left -= len(slots)
    return np.concatenate([np.zeros(0, np.int64), *rows])


def order_of(split, of, ranks, epoch, window, seed=0, memory=float("inf"), at_once=1000):
    """The row at each position of an epoch, put together from streams of that many ranks; -1 where none has one."""
    order = np.full(len(split), -1)
    for rank in range(ranks):
        shards = dealt(of, ranks, rank)
        parts = {shard: block(len(split), of, shard) for shard in shards}
        stream = stream_shuffled(split, parts, of, seed, Budget(memory, "streaming", window), ALONE)
        try:
            order[Positions(shards, len(split), of).numbers()] = rows_of(stream, epoch, at_once)
        finally:
            stream.close()
    return order


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Splits of 401 rows in all layouts: in one piece, in chunks, and listed rows of a pile."""
    folder = tmp_path_factory.mktemp("numbered")
    return {
        "contiguous": split_of(numbered(folder / "a.h5", 401)),
        "chunks": split_of(numbered(folder / "b.h5", 401, chunk=7)),
        "listed": split_of(numbered(folder / "c.h5", 401, chunk=5, pile=True)),
    }


def test_an_epoch_without_its_first_rows(files):
    """It goes on as the whole one does there, and into the next epoch; windows that nobody wants are not read."""
    for split in files.values():
        parts = {shard: block(len(split), 5, shard) for shard in (0, 3, 4)}
        stream = stream_shuffled(split, parts, 5, 0, Budget(window=ROW * 60), ALONE)
        whole, after = rows_of(stream, 2), rows_of(stream, 3)
        read, load = [], stream.buffers.load
        stream.buffers.load = lambda *given, read=read, load=load: (read.append(given[-1]), load(*given))[1]
        for without in (0, 1, 2, 100, 131, len(whole) - 4, len(whole) - 1, len(whole)):
            read.clear()
            stream.start(2, without)
            rows = [stream.buffers.images[stream.take(1), 0] for _ in range(len(whole) - without)]
            assert np.array_equal(np.concatenate([np.zeros(0, int), *rows]), whole[without:])
            if without in (100, 131):
                assert read[0].first + len(read[0]) > without // 3
        assert np.array_equal(rows_of(stream, 3), after)
        stream.close()


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["contiguous", "chunks", "listed"]),
    of=st.integers(1, 70),
    ranks=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
    window=st.integers(1, 40 * ROW * 64),
    at_once=st.integers(1, 300),
)
def test_every_sample_once_in_the_order_of_one_rank(files, kind, of, ranks, seed, window, at_once):
    split = files[kind]
    alone = order_of(split, of, 1, 3, window, seed)
    rows = np.arange(401) if split.rows is None else split.rows
    assert np.array_equal(np.sort(alone), rows)
    assert np.array_equal(order_of(split, of, ranks, 3, window, seed, at_once=at_once), alone)


def test_memory_does_not_change_the_order(files):
    split = files["contiguous"]
    window = 8 * 6 * ROW  # six rows a shard
    little = 9 * 6 * (ROW + 8)  # a window for each of eight shards and one more
    assert np.array_equal(order_of(split, 8, 1, 0, window, memory=little), order_of(split, 8, 1, 0, window))


def test_epochs_and_seeds_differ(files):
    orders = [order_of(files["chunks"], 8, 1, epoch, 4000, seed) for epoch in range(3) for seed in range(3)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert (order == other).sum() < 60  # with 50 rows a shard 8 on average, more as windows are small


def test_an_epoch_is_the_same_whatever_was_read_before(files):
    split = files["chunks"]
    parts = {shard: block(len(split), 8, shard) for shard in range(8)}
    stream = stream_shuffled(split, parts, 8, 0, Budget(holding="streaming", window=4000), ALONE)
    orders = {}
    for epoch in (0, 1, 2, 0, 5, 1):
        order = rows_of(stream, epoch)
        assert np.array_equal(order, orders.setdefault(epoch, order))
    stream.start(1)
    stream.take(5)  # and no more of it
    assert np.array_equal(rows_of(stream, 2), orders[2])
    stream.close()


def test_the_reader_stops_with_its_stream(files):
    before = threading.active_count()
    stream = stream_in_order(files["chunks"], range(401))
    assert np.array_equal(rows_of(stream, 0), np.arange(401))
    stream.start(0)
    stream.close()
    stream.start(0)
    reader = stream._reader.thread
    del stream
    reader.join(20)
    assert threading.active_count() == before


def test_a_stream_that_is_dropped_within_h5py_waits_for_nobody(files):
    """As Python's collector may do anywhere, and the reader wants h5py's lock to close its file."""
    split = files["chunks"]
    parts = {shard: block(len(split), 8, shard) for shard in range(8)}
    stream = stream_shuffled(split, parts, 8, 0, Budget(holding="streaming", window=4000), ALONE)
    stream.start(0)
    stream.take(1)
    held, dropped, reader = [stream], threading.Event(), stream._reader.thread
    assert reader.is_alive()
    del stream

    def drop():
        with h5py._objects.phil:
            held.clear()
            dropped.set()

    threading.Thread(target=drop, daemon=True).start()
    assert dropped.wait(20)
    reader.join(20)
    assert not reader.is_alive()


@settings(max_examples=50)
@given(
    start=st.integers(0, 400), length=st.integers(0, 400), rows=st.integers(1, 100),
    kind=st.sampled_from(["contiguous", "listed"]),
)  # fmt: skip
def test_blocks_end_where_chunks_of_the_file_end(files, start, length, rows, kind):
    split = files[kind]
    part = range(min(start, len(split)), min(start + length, len(split)))
    blocks = split.blocks(part, rows)
    assert [place for one in blocks for place in one] == list(part)
    assert all(one and split.row(one[0]) // rows == split.row(one[-1]) // rows for one in blocks)


class TestCut:
    def test_follows_the_file_and_the_window(self, files):
        assert cut_of(files["contiguous"], 160 * ROW) == Cut(10, 16)
        assert cut_of(files["chunks"], 160 * ROW) == Cut(7, 16)
        assert cut_of(files["chunks"], 16 * 15 * ROW) == Cut(14, 16)
        assert cut_of(files["chunks"], 1) == Cut(7, 1)  # a block is the least
        assert row_bytes(files["chunks"]) == ROW


class TestMixing:
    """A long shard, read in windows, is as good as shuffled to a network."""

    def drawn(self, n, rows, shard=3, epoch=0):
        """The places of a shard of n rows in their order, for blocks of so many rows."""
        cut = Cut(rows, 16)
        blocks = [range(start, min(start + rows, n)) for start in range(0, n, rows)]
        windows = shuffled(0, shard, blocks, cut, 0, epoch)
        return np.concatenate([np.concatenate([np.asarray(p) for p in w.parts])[w.order()] for w in windows])

    def test_neighbours_are_not_correlated(self):
        """Serial correlation of n draws is within 5 / sqrt(n) of nought for lags within a window's reach of a step."""
        n, rows = 40_000, 20
        order = self.drawn(n, rows)
        assert np.array_equal(np.sort(order), np.arange(n))
        place = (order - order.mean()) / order.std()
        blocks = n / rows  # rows of a block stay together, so that these are what counts as independent
        for lag in (1, 2, 3, 10, 100):
            assert abs((place[lag:] * place[:-lag]).mean()) < 1 / 16 + 5 / np.sqrt(blocks), lag
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 5 / np.sqrt(blocks)

    def test_rows_of_a_block_seldom_follow_each_other(self):
        order = self.drawn(40_000, 20)
        assert (order[1:] // 20 == order[:-1] // 20).mean() < 1.2 / 16

    def test_a_file_sorted_by_class_gives_mixed_steps(self, tmp_path):
        """Steps of 120 rows draw from all 64 shards: their classes are as even as those of the resident order."""
        path = numbered(tmp_path / "sorted.h5", 6000)
        order = order_of(split_of(path), 64, 1, 0, 64 * 30 * ROW)
        for step in (order // 600).reshape(-1, 120):
            assert np.bincount(step, minlength=10).min() >= 4  # 12 on average

    def test_steps_are_not_serially_correlated(self, tmp_path):
        """Where a step's rows come from in their shards tells next to nothing of where the next one's do."""
        path = numbered(tmp_path / "drifting.h5", 48_000)
        order = order_of(split_of(path), 64, 1, 0, 64 * 128 * ROW)
        place = (order % 750 / 750).reshape(-1, 64)  # a step of 64 takes one row from each shard
        for lag in (1, 2, 3, 10):
            by_shard = np.mean([correlation(place[:, shard], lag) for shard in range(64)])
            assert abs(by_shard) < 1 / 16 + 0.02, lag  # 64 shards of 750 rows
            assert abs(correlation(place.mean(axis=1), lag)) < 1 / 16 + 4 / np.sqrt(len(place)), lag


def correlation(series, lag):
    series = (series - series.mean()) / series.std()
    return (series[lag:] * series[:-lag]).mean()


class TestTrainingRows:
    def streaming(self, path, comm, window="4000", shards=8):
        data = open_image_set(DataOptions(data=str(path)), 0, comm)
        budget = Budget(holding="streaming", window=int(window))
        return data, TrainingRows(data, shards, 0, comm, Host(), budget)

    def steps(self, training, epoch, batch_size, size=None):
        """(row, key) of all ranks' rows of each step, in no order; of what gather gives, not of what is in memory."""
        ws, found = Workspace(Host()), []
        for batch in training.epoch(epoch, batch_size):
            mine = []
            for part in batch.parts(size):
                ws.reset()
                x, t = training.rows.gather(ws, part.index, part.keys)
                mine += list(zip(np.rint(x[:, 0]).astype(int).tolist(), part.keys.tolist(), t.tolist(), strict=True))
            found.append(sorted(row for part in training.comm.comm.allgather(mine) for row in part))
        return found

    @pytest.mark.parallel([1, 2, 3, 4])
    @pytest.mark.parametrize(("batch_size", "size"), [(16, None), (50, 7), (1000, None), (1, None)])
    def test_steps_are_those_of_one_rank(self, shared_path, batch_size, size):
        path = numbered(shared_path / f"{MPI.COMM_WORLD.rank}.h5", 203, chunk=9, mean=0.0, std=1.0)
        (_, together), (_, alone) = self.streaming(path, world()), self.streaming(path, ALONE)
        assert together.holding == "streaming"
        for epoch in range(2):
            here, there = self.steps(together, epoch, batch_size, size), self.steps(alone, epoch, batch_size, size)
            assert here == there
            assert sorted(row for step in here for row, _, _ in step) == list(range(203))
            assert all(row % 3 == label for step in here for row, _, label in step)
        together.rows.close()
        alone.rows.close()

    @pytest.mark.parallel([1, 2, 3])
    def test_moments_and_classes_are_those_of_resident_rows(self, shared_path):
        path = numbered(shared_path / f"{MPI.COMM_WORLD.rank}.h5", 203, chunk=9)
        comm = world()
        data, streamed = self.streaming(path, comm)
        resident = TrainingRows(data, 8, 0, comm, Host())
        np.testing.assert_allclose(streamed.scaler.mean, resident.scaler.mean, rtol=1e-12)
        np.testing.assert_allclose(streamed.scaler.std, resident.scaler.std, rtol=1e-12)
        assert class_count(data, streamed, [], comm) == class_count(data, resident, [], comm) == 3

    def test_more_ranks_than_shards(self, tmp_path):
        data = open_image_set(DataOptions(data=str(numbered(tmp_path / "a.h5", 30))), 0, ALONE)
        stream = stream_shuffled(data.train, {}, 3, 0, Budget(window=1000), ALONE)
        assert (stream.buffers.count, len(rows_of(stream, 0))) == (0, 0)
        stream.close()


class TestEvaluation:
    @pytest.mark.parallel([1, 3])
    @pytest.mark.parametrize("pile", [False, True])
    def test_streamed_rows_are_the_resident_ones(self, shared_path, pile):
        path = numbered(shared_path / f"{MPI.COMM_WORLD.rank}.h5", 203, chunk=9, pile=pile, mean=0.0, std=2.0)
        comm = world()
        data = open_image_set(DataOptions(data=str(path)), 0, comm)
        scaler = TrainingRows(data, 8, 0, comm, Host()).scaler
        resident, streamed = (
            evaluation_rows(data.test, scaler, comm, Host(), Budget(holding=holding))
            for holding in ("resident", "streaming")
        )
        assert (len(resident), resident.largest_label) == (len(streamed), streamed.largest_label)
        ws, index = Workspace(Host()), np.arange(len(resident))
        for _ in range(2):
            streamed.rewind()
            for start in range(0, len(index), 10):
                ws.reset()
                x, t = streamed.gather(ws, index[start : start + 10])
                y, u = resident.gather(ws, index[start : start + 10])
                assert np.array_equal(x, y) and np.array_equal(t, u)
        streamed.close()


class TestErrors:
    def test_too_little_memory(self, tmp_path):
        data = open_image_set(DataOptions(data=str(numbered(tmp_path / "a.h5", 400, chunk=40))), 0, ALONE)
        with pytest.raises(InputError, match=r"keeps 9 windows of .* raise --memory.* chunks than 40 images"):
            TrainingRows(data, 8, 0, ALONE, Host(), Budget(5000, "auto", 1000))

    @pytest.mark.parametrize("label", [False, True])
    def test_bad_values_are_named(self, tmp_path, label):
        path = write_image_set(tmp_path / "set.h5", dtype=np.float32, attributes={"mean": 0.0, "std": 1.0})
        with h5py.File(path, "a") as file:
            file["train/labels" if label else "train/images"][41] = 2**7 if label else np.nan
            file.attrs["classes"] = ["a", "b", "c"]
        data = open_image_set(DataOptions(data=str(path)), 0, ALONE)
        message = "train/labels row 41 is 128" if label else "train/images row 41 has a pixel that is not finite"
        with pytest.raises(InputError, match=message):
            self.one_epoch(data)

    def one_epoch(self, data):
        training = TrainingRows(data, 4, 0, ALONE, Host(), Budget(holding="streaming", window=400))
        ws = Workspace(Host())
        for batch in training.epoch(0, 10):
            training.rows.gather(ws, batch.index, batch.keys)

    def test_a_file_that_goes_away(self, tmp_path):
        path = write_image_set(tmp_path / "set.h5", attributes={"mean": 0.0, "std": 1.0})
        data = open_image_set(DataOptions(data=str(path)), 0, ALONE)
        training = TrainingRows(data, 4, 0, ALONE, Host(), Budget(holding="streaming", window=400))
        path.unlink()
        with pytest.raises(InputError, match="no such file"):
            training.rows.labels_of(Workspace(Host()), next(islice(training.epoch(0, 10), 1)).index)


@pytest.mark.parallel([1, 2, 3, 4])
def test_the_ranks_choose_alike(shared_path):
    comm = world()
    data = open_image_set(DataOptions(data=str(numbered(shared_path / f"{comm.rank}.h5", 400))), 0, comm)
    plenty, scarce = 1e9, 150 * ROW
    last = Budget(scarce if comm.rank == comm.size - 1 else plenty, "auto", 400)
    fits = 400 // comm.size <= 150
    assert TrainingRows(data, 8, 0, comm, Host(), last).holding == ("resident" if fits else "streaming")
    assert TrainingRows(data, 8, 0, Communicator(comm.comm), Host(), Budget(plenty)).holding == "resident"
