"""Who has which part of the network: layers to pipeline stages by cost, matrices to tensor ranks by columns or rows.

    layer 0            layer 1            layer 2 (the last)
    [  |  |  ]         [--------]         [  |  |  ]
    [  |  |  ]   ->    [--------]   ->    [  |  |  ]      three slices
    [  |  |  ]         [--------]         [  |  |  ]
    by columns         by rows            by columns

A cut by columns wants all inputs and gives a slice of the outputs, a cut by rows wants a slice of the inputs and gives
a term of all outputs; so of two neighbours in a row only the second one's sum is a message (Shoeybi et al. 2019). The
last layer is cut by columns, that is by classes; counting from there the kinds alternate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from mpi_parallel.mpi.partition import block
from mpi_parallel.options import InputError

OVERHEAD = 1 << 14  # what a layer costs beside its products, in multiplications of one row


@dataclass(frozen=True)
class Cut:
    """The part of layer `number` that a tensor rank has: W[rows, columns], and b[bias]."""

    number: int
    whole: tuple[int, int]  # fan in, fan out
    kind: str  # "columns" or "rows"
    rows: range
    columns: range
    bias: range  # of a cut by rows the first rank has the whole bias, the others none

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the parameters."""
        W = (f"W{self.number}", (len(self.rows), len(self.columns)))
        return [W, (f"b{self.number}", (len(self.bias),))] if self.bias else [W]


def cuts_of(widths: Sequence[int], slices: int, rank: int) -> list[Cut]:
    """The slice of each layer that `rank` of `slices` has. Raises InputError where one would be empty."""
    result = []
    for number, whole in enumerate(pairwise(widths)):
        by_columns = (len(widths) - 2 - number) % 2 == 0
        cut_width = whole[1] if by_columns else whole[0]
        if cut_width < slices:
            what = "outputs" if by_columns else "inputs"
            raise InputError(
                f"--tensor {slices} cuts layer {number} ({whole[0]} x {whole[1]}) into slices of its {cut_width} "
                f"{what}, and there would be slices of width zero: choose --tensor {cut_width} or less, or other widths"
            )
        mine, fan_in, fan_out = block(cut_width, slices, rank), range(whole[0]), range(whole[1])
        if by_columns:
            result.append(Cut(number, whole, "columns", fan_in, mine, mine))
        else:
            result.append(Cut(number, whole, "rows", mine, fan_out, fan_out if rank == 0 else range(0)))
    return result


def place(widths: Sequence[int], stages: int) -> list[range]:
    """The layers of each stage: consecutive ones, so that the most costly stage costs least.

    Raises InputError where there are more stages than layers.
    """
    costs = layer_costs(widths)
    if stages > len(costs):
        raise InputError(f"--pipe {stages} wants as many stages, but the network has {len(costs)} layers")
    return min(_placements(len(costs), stages), key=lambda placed: _judged(costs, placed))


def layer_costs(widths: Sequence[int]) -> list[int]:
    """Multiplications a row of each layer's forward and backward; nobody wants the gradient of the images."""
    return [(3 if number else 2) * i * o + OVERHEAD for number, (i, o) in enumerate(pairwise(widths))]


def _placements(layers: int, stages: int) -> list[list[range]]:
    """All ways to cut a row of layers into stages; networks here have few layers."""
    inner = combinations(range(1, layers), stages - 1)
    return [[range(*ends) for ends in pairwise((0, *cut, layers))] for cut in inner]


def _judged(costs: Sequence[int], placed: Sequence[range]) -> list[int]:
    """The stages' costs, the largest first: of equal ones the next decides."""
    return sorted((sum(costs[layer] for layer in stage) for stage in placed), reverse=True)
