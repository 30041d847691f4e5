"""Who writes which bytes of a whole array."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.nn.mlp import Place
from mpi_parallel.training.checkpoints import slices
from mpi_parallel.training.checkpoints.slices import pieces_of, written_by


def place(name, shape, index, start):
    size = int(np.prod([part.stop - part.start for part in index]))
    return Place(name, shape, index, SimpleNamespace(span=slice(start, start + size)))


@given(st.integers(1, 7), st.integers(1, 9), st.data())
def test_pieces_put_a_span_where_it_belongs(rows, columns, data):
    """A part of a matrix and one of a vector, and any run of the flat array that holds both."""
    cuts = [
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in (rows, columns)
    ]
    index = tuple(slice(*ends) for ends in cuts)
    matrix = place("W0", (rows, columns), index, 0)
    vector = place("b0", (columns,), index[1:], matrix.parameter.span.stop)
    size = vector.parameter.span.stop
    first, last = sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2)))
    flat = np.arange(1, size + 1, dtype=np.float32)
    whole = {"W0": np.zeros((rows, columns), np.float32), "b0": np.zeros(columns, np.float32)}
    slices.PIECE = data.draw(st.sampled_from([4, 12, 1 << 22]))
    held = flat[first:last].tobytes()
    for piece in pieces_of([matrix, vector], slice(first, last), ["b0", "W0"]):
        target = whole[["b0", "W0"][piece.array]].reshape(-1).view(np.uint8)
        assert piece.size <= max(slices.PIECE, piece.run)
        for number in range(piece.count):
            at, local = piece.start + number * piece.stride, piece.local + number * piece.run
            target[at : at + piece.run] = np.frombuffer(held[local : local + piece.run], np.uint8)
    slices.PIECE = 1 << 22
    expected = {name: np.zeros_like(array) for name, array in whole.items()}
    flat[:first] = flat[last:] = 0
    expected["W0"][index] = flat[matrix.parameter.span].reshape(expected["W0"][index].shape)
    expected["b0"][index[1]] = flat[vector.parameter.span]
    for name, array in whole.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize(
    "owned",
    [
        [slice(0, 100)] * 3,  # flat: everybody has everything
        [slice(0, 48), slice(48, 96), slice(96, 100)],  # sharded
        [slice(0, 48), slice(48, 100)] * 2,  # window, on two nodes
        [slice(0, 100), slice(0, 0), slice(0, 0)],  # window, where a node has fewer ranks than another
    ],
)
def test_everything_is_written_once(owned):
    written = np.zeros(100, int)
    for rank, mine in enumerate(owned):
        span = written_by(owned, rank)
        assert span.start >= mine.start
        assert span.stop <= max(mine.stop, span.start)
        written[span] += 1
    assert (written == 1).all()
