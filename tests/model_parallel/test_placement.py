"""Who has which part of the network."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.model_parallel.placement import cuts_of, layer_costs, place
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
    placed, costs = place(widths, stages), layer_costs(widths)
    assert [layer for stage in placed for layer in stage] == list(range(layers))
    assert len(placed) == stages
    assert min(map(len, placed)) > 0
    largest = max(sum(costs[layer] for layer in stage) for stage in placed)
    assert stages <= runs_within(costs, largest) or stages > 0
    assert runs_within(costs, largest - 1) > stages


def runs_within(costs, limit):
    """The least number of runs whose sums are within the limit."""
    runs, left = 0, -1
    for cost in costs:
        if cost > limit:
            return len(costs) + 1
        if cost > left:
            runs, left = runs + 1, limit
        left -= cost
    return runs


def test_more_stages_than_layers_are_refused_with_both_sides():
    with pytest.raises(InputError, match="--pipe 4 wants as many stages, but the network has 3 layers"):
        place((12, 9, 7, 3), 4)
