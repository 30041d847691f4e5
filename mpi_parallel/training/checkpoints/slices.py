"""Who writes which bytes of a checkpoint: every element of the whole arrays is written once, by a rank that has it.

The ranks of a model have parts of its arrays (`Place`), and the ranks of a data axis divide what they have alike. What
a rank writes is cut into pieces: runs of bytes at equal distances in a whole array, at most PIECE bytes together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from mpi_parallel.mpi.partition import share
from mpi_parallel.nn.mlp import Place

PIECE = 1 << 22  # bytes with a checksum of their own: so many ranks verify a file together
ITEM = 4  # bytes of a float32


@dataclass(frozen=True)
class Piece:
    """`count` runs of `run` bytes of array number `array`, the first at byte `start`, each `stride` behind the last.

    In the rank's own flat array they lie together, from byte `local` on.
    """

    array: int
    start: int
    run: int
    stride: int
    count: int
    local: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return self.run * self.count


def written_by(owned: Sequence[slice], rank: int) -> slice:
    """The part of the store that a rank of a data axis writes; `owned` are all ranks' slices of it.

    Ranks that own the same slice divide it; two slices are the same or have nothing in common.
    """
    mine = owned[rank]
    same = [other for other, span in enumerate(owned) if span == mine]
    part = share(mine.stop - mine.start, len(same), same.index(rank))
    return slice(mine.start + part.start, mine.start + part.stop)


def pieces_of(places: Sequence[Place], span: slice, names: Sequence[str]) -> list[Piece]:
    """The pieces that hold the store's `span`; `local` counts from its start, and arrays by their place in `names`."""
    found = []
    for place in places:
        held = place.parameter.span
        start, stop = max(span.start, held.start), min(span.stop, held.stop)
        if start < stop:
            number, local = names.index(place.name), ITEM * (start - span.start)
            for begin, run, stride, count in _runs(place, start - held.start, stop - held.start):
                found.append(Piece(number, ITEM * begin, ITEM * run, ITEM * stride, count, local))
                local += ITEM * run * count
    return [part for piece in found for part in cut(piece)]


def cut(piece: Piece) -> Iterator[Piece]:
    """The piece in parts of at most PIECE bytes."""
    if piece.count == 1:
        stop, start = piece.start + piece.run, piece.start
        while start < stop:  # whoever begins where: all but the ends are whole pages of the file
            end = min(stop, start - start % PIECE + PIECE)
            yield Piece(piece.array, start, end - start, end - start, 1, piece.local + start - piece.start)
            start = end
        return
    at_once = max(1, PIECE // piece.run)
    for first in range(0, piece.count, at_once):
        count = min(at_once, piece.count - first)
        begin, local = piece.start + first * piece.stride, piece.local + first * piece.run
        yield Piece(piece.array, begin, piece.run, piece.stride, count, local)


def _runs(place: Place, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, run, stride, count), in elements of the whole array, of this rank's elements [start, stop) of it."""
    width = place.index[-1].stop - place.index[-1].start
    if len(place.index) == 1 or width == place.shape[-1]:  # it lies together in the whole array, too
        first = place.index[0].start * prod(place.shape[1:])
        yield first + start, stop - start, stop - start, 1
        return
    rows, columns = place.index
    origin, stride = rows.start * place.shape[1] + columns.start, place.shape[1]
    row = start // width
    if start % width or stop < (row + 1) * width:  # the end of a row, or less
        end = min(stop, (row + 1) * width)
        yield origin + row * stride + start % width, end - start, end - start, 1
        start, row = end, row + 1
    if whole := (stop - start) // width:
        yield origin + row * stride, width, stride, whole
        start, row = start + whole * width, row + whole
    if start < stop:
        yield origin + row * stride, stop - start, stop - start, 1
