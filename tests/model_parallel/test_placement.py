"""Who has which part of the network."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.model_parallel.placement import FLOAT, cuts_of, layer_costs, place
from mpi_parallel.options import InputError

WIDTHS = st.lists(st.integers(8, 40), min_size=2, max_size=6)


@given(WIDTHS, st.integers(1, 8))
def test_every_weight_is_in_one_slice(widths, slices):
    counts = [np.zeros((i, o), int) for i, o in pairwise(widths)], [np.zeros(o, int) for o in widths[1:]]
    for rank in range(slices):
        for cut in cuts_of(widths, slices, rank):
            counts[0][cut.number][cut.rows.start : cut.rows.stop, cut.columns.start : cut.columns.stop] += 1
            counts[1][cut.number][cut.bias.start : cut.bias.stop] += 1
    assert all((array == 1).all() for kind in counts for array in kind)


@given(WIDTHS)
def test_kinds_alternate_and_the_last_is_cut_by_classes(widths):
    kinds = [cut.kind for cut in cuts_of(widths, 2, 0)]
    assert kinds[-1] == "columns"
    assert all(one != other for one, other in pairwise(kinds))


def test_a_slice_of_width_zero_is_refused_with_both_sides():
    with pytest.raises(InputError, match=r"--tensor 4 cuts layer 1 \(9 x 3\) into slices of its 3 outputs"):
        cuts_of((12, 9, 3), 4, 0)
    with pytest.raises(InputError, match=r"--tensor 4 cuts layer 0 \(3 x 9\) into slices of its 3 inputs"):
        cuts_of((3, 9, 30), 4, 0)


@given(st.lists(st.integers(1, 300), min_size=2, max_size=8), st.data())
def test_stages_are_runs_of_layers_and_the_most_costly_is_as_cheap_as_can_be(widths, data):
    layers = len(widths) - 1
    stages = data.draw(st.integers(1, layers))
    placed = [[share.number for share in stage] for stage in place(widths, stages)]
    assert [layer for stage in placed for layer in stage] == list(range(layers))
    assert len(placed) == stages
    assert min(map(len, placed)) > 0
    ways = [(0, *cut, layers) for cut in combinations(range(1, layers), stages - 1)]
    assert dearest(widths, placed) == min(worth(widths, way) for way in ways)


def worth(widths, way):
    return dearest(widths, [list(range(*ends)) for ends in pairwise(way)])


def dearest(widths, placed):
    """Cost of the most costly of these stages, which are runs of whole layers."""
    costs, messages = layer_costs(widths), [0, *(FLOAT * width for width in widths[1:-1]), 0]
    return max(sum(costs[n] for n in stage) + messages[stage[0]] + messages[stage[-1] + 1] for stage in placed)


@given(st.lists(st.integers(8, 3000), min_size=3, max_size=7), st.integers(1, 4), st.data())
def test_stages_that_may_share_layers_have_every_column_once_and_are_no_dearer(widths, slices, data):
    stages = data.draw(st.integers(1, len(widths) - 1))
    placed = place(widths, stages, slices, whole=False)
    assert len(placed) == stages
    for rank in range(slices):
        for cut in cuts_of(widths, slices, rank):
            parts = [cut.narrowed(share) for stage in placed for share in stage if share.number == cut.number]
            assert [column for part in parts for column in part.columns] == list(cut.columns)
            assert all(len(part.columns) for part in parts)
            assert [column for part in parts for column in part.bias] == list(cut.bias)
            assert [part.ends for part in parts] == [False] * (len(parts) - 1) + [True]


def test_a_layer_that_is_most_of_the_work_is_shared_where_the_messages_are_worth_it():
    (first, mine), (others, last) = place((784, 4096, 4096, 10), 2, whole=False)
    assert (first.number, mine.number, others.number, last.number) == (0, 1, 1, 2)
    assert mine.stop == others.start
    assert 0.35 < mine.stop / 64 < 0.5  # of a layer with 88 % of the products, beside one with 11 %
    assert [[s.number for s in stage] for stage in place((784, 128, 64, 10), 2, whole=False)] == [[0], [1, 2]]


def test_more_stages_than_layers_are_refused_with_both_sides():
    with pytest.raises(InputError, match="--pipe 4 wants as many stages, but the network has 3 layers"):
        place((12, 9, 7, 3), 4)
