"""The verbs of a communicator, on any number of ranks."""

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.mpi import messages
from mpi_parallel.mpi.communicator import Communicator


@pytest.fixture
def comm():
    return Communicator(MPI.COMM_WORLD)


class Recording:
    """A device whose arrays are not the host's, and which notes what it is asked for."""

    kind, xp = "cuda", np

    def __init__(self):
        self.asked = []

    def to_host(self, array):
        self.asked.append("to_host")
        return array.copy()

    def to_device(self, array):
        return array.copy()

    def refill(self, array, values):
        self.asked.append("refill")
        array[...] = values


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u4"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (1000,), (3, 4)])
def test_sum(comm, dtype, shape):
    array = np.full(shape, comm.rank + 1, dtype)
    comm.sum(array)
    assert np.array_equal(array, np.full(shape, sum(range(1, comm.size + 1)), dtype))


@pytest.mark.parallel([1, 2, 3, 4])
def test_sum_gives_all_ranks_the_same_bits(comm):
    for length in (1, 10, 109_386, 300_001):  # MPIs change their algorithm with the length
        array = np.random.default_rng(comm.rank).normal(size=length).astype(np.float32)
        terms = comm.gather(array)
        comm.sum(array)
        results = comm.gather(array)
        assert all(np.array_equal(result, results[0]) for result in results)
        np.testing.assert_allclose(array, terms.sum(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parallel([1, 2, 3])
def test_sum_works_in_place(comm):
    whole = np.ones(10, np.float32)
    comm.sum(whole[2:5])
    assert whole.tolist() == [1, 1] + [comm.size] * 3 + [1] * 5


@pytest.mark.parallel([1, 2, 3])
def test_sum_stages_what_the_host_cannot_see(comm):
    device = Recording()
    array = np.full(5, 2.0)
    comm.on(device).sum(array)
    assert array.tolist() == [2 * comm.size] * 5
    assert device.asked == (["to_host", "refill"] if comm.size > 1 else [])


@pytest.mark.parallel([1, 2, 3, 4])
def test_maximum(comm):
    assert comm.maximum(-comm.rank - 5) == -5
    assert comm.maximum(2**60 + comm.rank) == 2**60 + comm.size - 1


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["f8", "i8", "i4", "u1"])
def test_gather(comm, dtype):
    rows = comm.gather(np.arange(6, dtype=dtype).reshape(2, 3) + comm.rank)
    assert rows.shape == (comm.size, 2, 3)
    assert rows.dtype == dtype
    for rank in range(comm.size):
        assert np.array_equal(rows[rank], np.arange(6).reshape(2, 3) + rank)


@pytest.mark.parallel([1, 2, 3])
def test_gather_takes_a_view_that_is_not_contiguous(comm):
    table = np.arange(12).reshape(3, 4) + 100 * comm.rank
    assert comm.gather(table[:, 1]).tolist() == [[1 + 100 * r, 5 + 100 * r, 9 + 100 * r] for r in range(comm.size)]


@pytest.mark.parallel([1, 2, 3, 4])
def test_gather_text(comm):
    assert comm.gather_text(f"größe {comm.rank}" * comm.rank) == [f"größe {r}" * r for r in range(comm.size)]


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "i4", "i8", "u8", "f4", "f8"])
def test_broadcast_from_any_root(comm, dtype):
    for root in range(comm.size):
        for shape in ((5,), (0,), (2, 3), ()):
            given = np.full(shape, root + 3, dtype)
            got = comm.broadcast(given if comm.rank == root else None, root)
            assert got.dtype == dtype
            assert np.array_equal(got, given)


@pytest.mark.parallel([1, 2, 3])
def test_broadcast_takes_a_view_that_is_not_contiguous(comm):
    got = comm.broadcast(np.arange(12).reshape(3, 4)[:, ::2] if comm.rank == 0 else None)
    assert got.tolist() == [[0, 2], [4, 6], [8, 10]]


@pytest.mark.parallel([1, 2, 3, 4])
def test_the_ranks_of_this_machine_are_one_node(comm):
    node = comm.node()
    assert (node.rank, node.size) == (comm.rank, comm.size)
    node.free()


@pytest.mark.parallel([2, 3, 4])
def test_messages_of_two_communicators_do_not_meet(comm):
    """Ranks may be at different places of the two: what is begun on one is not taken for the other's."""
    other = Communicator(MPI.COMM_WORLD.Dup())
    first, second = np.full(3, 1.0), np.full(3, 10.0)
    request = other.comm.Iallreduce(MPI.IN_PLACE, second)
    comm.sum(first)
    request.Wait()
    assert first.tolist() == [comm.size] * 3
    assert second.tolist() == [10 * comm.size] * 3
    other.free()


@pytest.fixture(params=[1 << 30, 40])
def cut(request, monkeypatch):
    """Messages whole, and cut as beyond the limit."""
    monkeypatch.setattr(messages, "MOST", request.param)


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(0,), (1,), (9,), (10,), (11,), (1000,), (7, 13)])
def test_sums_and_broadcasts_that_are_cut(comm, cut, shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + comm.rank
    expected = comm.gather(array).sum(axis=0)
    pending = array.copy()
    request = comm.begin_sum(pending)
    comm.sum(array)
    request.wait()
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(pending, expected)
    np.testing.assert_array_equal(comm.broadcast(expected if comm.rank == 0 else None), expected)


@pytest.mark.parallel([1, 2, 3, 4, 5])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 33, 1000])
@pytest.mark.parametrize("staged", [False, True])
def test_shares_are_summed_and_gathered(comm, cut, n, staged):
    comm = comm.on(Recording()) if staged else comm
    array = np.arange(n, dtype=np.float32) * (comm.rank + 1)
    expected = np.arange(n, dtype=np.float32) * sum(range(1, comm.size + 1))
    mine = comm.share(n)
    comm.sum_shares(array, np.empty(mine.stop - mine.start, np.float32))
    np.testing.assert_array_equal(array[mine], expected[mine])
    array[: mine.start] = array[mine.stop :] = -1
    comm.gather_shares(array)
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parallel([1, 2, 3, 4, 5])
@pytest.mark.parametrize("width", [0, 1, 15, 17, 33, 100])
@pytest.mark.parametrize("dtype", ["f4", "u2"])
@pytest.mark.parametrize("staged", [False, True])
def test_rows_of_all_ranks_are_gathered_and_their_columns_exchanged(comm, cut, width, dtype, staged):
    comm = comm.on(Recording()) if staged else comm
    counts = [1 + (rank * 2) % 3 for rank in range(comm.size)]  # 1, 3, 2, 1, 3
    everyone = np.arange(sum(counts) * width).reshape(sum(counts), width).astype(dtype)
    first, mine = sum(counts[: comm.rank]), comm.share(width)
    wider = np.full((counts[comm.rank], width + 3), 7, dtype)  # rows need not follow one another
    wider[:, :width] = everyone[first : first + counts[comm.rank]]
    table, columns = np.zeros_like(everyone), np.zeros((len(everyone), mine.stop - mine.start), dtype)
    comm.gather_rows(wider[:, :width].copy(), counts, table)
    comm.exchange_columns(wider[:, :width], counts, columns)
    np.testing.assert_array_equal(table, everyone)
    np.testing.assert_array_equal(columns, everyone[:, mine])


@pytest.mark.parallel([1, 2, 3])
def test_a_sum_in_the_background_is_done_when_it_is_asked_for_often(comm):
    array = np.full(1000, comm.rank + 1.0)
    request = comm.begin_sum(array)
    while not request.done():
        pass
    request.wait()
    assert (array == sum(range(1, comm.size + 1))).all()


@pytest.mark.parallel([1, 2, 3, 4])
def test_split_keeps_the_order(comm):
    part = comm.split(comm.rank % 2)
    members = part.gather(np.array([comm.rank]))[:, 0].tolist()
    assert members == list(range(comm.rank % 2, comm.size, 2))
    part.free()


@pytest.mark.parallel([1, 2, 3])
def test_total(comm):
    assert comm.total(0.5 + comm.rank) == sum(0.5 + rank for rank in range(comm.size))


def test_only_contiguous_arrays_are_sent():
    with pytest.raises(AssertionError, match="contiguous"):
        list(messages.messages(np.zeros((4, 4))[:, 1]))
