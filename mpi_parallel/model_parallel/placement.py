"""Who has which part of the network: layers to pipeline stages by cost, matrices to tensor ranks by columns or rows.

    layer 0            layer 1            layer 2 (the last)
    [  |  |  ]         [--------]         [  |  |  ]
    [  |  |  ]   ->    [--------]   ->    [  |  |  ]      three slices
    [  |  |  ]         [--------]         [  |  |  ]
    by columns         by rows            by columns

A cut by columns wants all inputs and gives a slice of the outputs, a cut by rows wants a slice of the inputs and gives
a term of all outputs; so of two neighbours in a row only the second one's sum is a message (Shoeybi et al. 2019). The
last layer is cut by columns, that is by classes; counting from there the kinds alternate.

Where one layer is most of the work a pipeline is no use if it takes layers whole. So a layer may be shared by several
stages, each of which has some of its columns (model_parallel/portion.py); that costs wider messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.partition import block
from mpi_parallel.options import InputError

# What else costs as much as so many multiplications of one row, forward and backward together:
OVERHEAD = 1 << 14  # a layer, beside its products
FLOAT = 256  # a number that goes to the next stage, and its gradient that comes back: each is written and read thrice

UNITS = 64  # a stage has so many parts of a layer's columns at the most
CANDIDATES = 1024  # places where a stage may end, that are looked at


@dataclass(frozen=True)
class Share:
    """What a stage has of layer `number`: of each tensor slice the columns from start / UNITS to stop / UNITS."""

    number: int
    start: int = 0
    stop: int = UNITS


@dataclass(frozen=True)
class Cut:
    """The part of layer `number` that a rank has: W[rows, columns], and b[bias]."""

    number: int
    whole: tuple[int, int]  # fan in, fan out
    kind: str  # "columns" or "rows"
    rows: range
    columns: range
    bias: range  # of a cut by rows the first rank has the whole bias, the others none
    slice: range  # the columns that the stages of this tensor rank have together

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the parameters."""
        W = (f"W{self.number}", (len(self.rows), len(self.columns)))
        return [W, (f"b{self.number}", (len(self.bias),))] if self.bias else [W]

    @property
    def fan_in(self) -> int:
        """Numbers that the layer looks at; the first layer is always given the whole image."""
        return self.whole[0] if self.number == 0 else len(self.rows)

    @property
    def begun(self) -> int:
        """Outputs that come from the stages before."""
        return self.columns.start - self.slice.start

    @property
    def ends(self) -> bool:
        """Whether the outputs are complete behind this stage, which then passes on them alone."""
        return self.columns.stop == self.slice.stop

    @property
    def width_in(self) -> int:
        """Numbers a row that come in: the layer's inputs, and the outputs that are there."""
        return self.fan_in + self.begun

    @property
    def gradient_in(self) -> int:
        """Numbers a row that go back: nobody wants the gradient of the images."""
        return self.begun + (self.fan_in if self.number else 0)

    @property
    def width_out(self) -> int:
        """Numbers a row that go on."""
        return len(self.slice) if self.ends else self.fan_in + self.columns.stop - self.slice.start

    @property
    def gradient_out(self) -> int:
        """Numbers a row that come back."""
        return self.width_out if self.number or self.ends else self.width_out - self.fan_in

    def narrowed(self, share: Share) -> Cut:
        """The part of it that a stage with this share has."""
        start, stop = (self.columns.start + len(self.columns) * end // UNITS for end in (share.start, share.stop))
        columns = range(start, stop)
        return replace(self, columns=columns, bias=columns if self.bias else self.bias)


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
            result.append(Cut(number, whole, "columns", fan_in, mine, mine, mine))
        else:
            result.append(Cut(number, whole, "rows", mine, fan_out, fan_out if rank == 0 else range(0), fan_out))
    return result


def place(widths: Sequence[int], stages: int, slices: int = 1, whole: bool = True) -> list[list[Share]]:
    """What each stage has: consecutive layers, so that the most costly stage costs least.

    Unless layers stay `whole` a stage may begin and end within one. A product of some columns is rounded otherwise
    than that of all, so runs that are to agree bit for bit want them whole. Raises InputError where there are more
    stages than layers.
    """
    layers = len(widths) - 1
    if stages > layers:
        raise InputError(f"--pipe {stages} wants as many stages, but the network has {layers} layers")
    ends = _candidates(widths, slices, whole or stages == 1)
    costs = _costs(widths, ends)
    # least[j]: the cost of the dearest of s stages that end at candidate j; before[s][j]: where the last one begins.
    least, before = costs[0], []
    for _ in range(stages - 1):
        dearest = np.maximum(least[:, None], costs)
        before.append(dearest.argmin(axis=0))
        least = dearest.min(axis=0)
    cut = [len(ends) - 1]
    for row in reversed(before):
        cut.append(int(row[cut[-1]]))
    cut.append(0)
    return [_shares(ends[start], ends[stop]) for start, stop in pairwise(reversed(cut))]


def layer_costs(widths: Sequence[int]) -> list[int]:
    """Multiplications a row of each layer's forward and backward; nobody wants the gradient of the images."""
    return [(3 if number else 2) * i * o + OVERHEAD for number, (i, o) in enumerate(pairwise(widths))]


def stage_costs(widths: Sequence[int], stages: Sequence[Sequence[Share]]) -> list[float]:
    """The layers' costs of each stage; of one that is shared, its part."""
    costs = layer_costs(widths)
    return [sum(costs[share.number] * (share.stop - share.start) / UNITS for share in stage) for stage in stages]


def _candidates(widths: Sequence[int], slices: int, whole: bool) -> list[int]:
    """Where a stage may end, in units from the start of the network: between layers, or within one."""
    ends = [0]
    for number, fan_out in enumerate(widths[1:]):
        by_columns = (len(widths) - 2 - number) % 2 == 0
        narrowest = fan_out // slices if by_columns else fan_out  # every slice has a column for each part
        step = UNITS if whole else max(-(-UNITS // narrowest), -(-UNITS * (len(widths) - 1) // CANDIDATES))
        ends += range(number * UNITS + step, (number + 1) * UNITS - step + 1, step)
        ends.append((number + 1) * UNITS)
    return ends


def _costs(widths: Sequence[int], ends: Sequence[int]) -> NDArray[np.float64]:
    """(N, N): what a stage from one of the ends to another costs, infinite where it has nothing."""
    at = np.array(ends) / UNITS
    products = [cost - OVERHEAD for cost in layer_costs(widths)]
    done = np.interp(at, np.arange(len(widths)), np.cumsum([0, *products]))
    layers = np.ceil(at)[None, :] - np.floor(at)[:, None]
    messages = FLOAT * np.array([_passed_on(widths, end) for end in ends])
    costs: NDArray[np.float64] = done[None] - done[:, None] + OVERHEAD * layers + messages[None] + messages[:, None]
    return np.where(at[None] > at[:, None], costs, np.inf)


def _passed_on(widths: Sequence[int], end: int) -> float:
    """Numbers a row that go on from here, the mean of forward and backward; none at the ends of the network."""
    number, part = divmod(end, UNITS)
    if end == 0 or number == len(widths) - 1:
        return 0.0
    return widths[number] * (1.0 if number else 0.5) + widths[number + 1] * part / UNITS


def _shares(start: int, stop: int) -> list[Share]:
    """The layers, or parts of some, between two ends."""
    numbers = range(start // UNITS, -(-stop // UNITS))
    return [Share(n, max(start - n * UNITS, 0), min(stop - n * UNITS, UNITS)) for n in numbers]
