"""This rank's part of the multilayer perceptron: the layers of its pipeline stage, and of each its tensor slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device import Array, Device
from mpi_parallel.device.workspace import Ring
from mpi_parallel.model_parallel.backlog import Backlog
from mpi_parallel.model_parallel.placement import Cut, cuts_of, place
from mpi_parallel.model_parallel.portion import Portion
from mpi_parallel.model_parallel.tensor import ColumnParallelLinear, RowParallelLinear, split_cross_entropy
from mpi_parallel.mpi.process_grid import ProcessGrid
from mpi_parallel.nn import functional as F
from mpi_parallel.nn.layers import Dropout, Layer, Linear, Sequential
from mpi_parallel.nn.mlp import Place, glorot_uniform
from mpi_parallel.nn.store import ParameterStore

PIECE = 1 << 20  # weights that are put together at a time


class ModelPart:
    """As nn.mlp.MLP, for one rank of a grid: each weight of the network is in the store of one rank of `grid.model`.

    Layers keep their numbers, names and first weights, whoever has them.
    """

    def __init__(
        self,
        device: Device,
        widths: Sequence[int],
        grid: ProcessGrid,
        dropout: float = 0.0,
        seed: int | None = 0,
        precision: str = "float32",
        whole_layers: bool = False,
    ) -> None:
        """`widths` are those of the whole network: features, hidden widths, classes; `seed` and `precision` as
        of nn.mlp.MLP.

        Stages may share a layer, by columns, unless they are to have `whole_layers`.

        Raises InputError where there are more stages than layers or a slice would be empty.
        """
        self.widths, self.grid = tuple(widths), grid
        self.depth = len(widths) - 1
        slices = cuts_of(widths, grid.tensor.size, grid.tensor.rank)
        self.workspace, self._host = Ring(device, precision), grid.model.on_host()
        whole_layers = whole_layers or self.workspace.storage != np.float32  # shared ones add up gradients
        self.stages = place(widths, grid.pipe.size, grid.tensor.size, whole_layers)
        self.cuts = [slices[share.number].narrowed(share) for share in self.stages[grid.pipe.rank]]
        # The last layer first: backward completes it first.
        self.store = ParameterStore(device, [shape for cut in reversed(self.cuts) for shape in cut.shapes], precision)
        # Only where no sum over slices travels while a weight gradient is computed is it better taken late.
        self.backlog = Backlog(device) if grid.tensor.size == 1 and grid.pipe.size > 1 else None
        linear = [self._layer(cut) for cut in self.cuts]
        self.training = Sequential(self._with_dropout(linear, dropout))
        self.inference = Sequential(linear)
        if seed is None:
            return
        for cut in self.cuts:
            start = glorot_uniform(*cut.whole, seed, cut.number, cut.rows, cut.columns)
            self.store.parameters[f"W{cut.number}"].value[...] = device.to_device(start)

    def loss_gradient(self, z_BK: Array, t_B: Array, tail: Array) -> Array:
        """On the last stage: dz of the summed cross-entropy for this rank's classes. Overwrites z.

        Adds the loss of all classes and the number correct to the tail, the same on all tensor ranks. dz is scaled.
        """
        if self.grid.tensor.size == 1:
            dz_BK = F.softmax_cross_entropy(self.workspace, z_BK, t_B, tail)
        else:
            dz_BK = split_cross_entropy(self.workspace, z_BK, t_B, tail, self.cuts[-1].columns, self.grid.tensor)
        return F.scaled(self.workspace, dz_BK, self.store.loss_scale.factor)

    def all_classes(self, z_BK: Array) -> NDArray[Any]:
        """Put together from the slices of the tensor ranks."""
        mine = self.store.device.to_host(z_BK)
        if self.grid.tensor.size == 1:
            return mine
        whole_BK = np.zeros((len(mine), self.widths[-1]), np.float32)
        whole_BK[:, _slice(self.cuts[-1].columns)] = mine
        self.grid.tensor.on_host().sum(whole_BK)
        return whole_BK

    def weights(self) -> Iterator[NDArray[np.float32]]:
        """Whole weights in the host's memory, as MLP.weights, on every rank of `grid.model`: all call it together.

        One array after the other, so that no rank has to hold the whole network.
        """
        for number in range(self.depth):
            yield self._rows(number, range(self.widths[number]))
            yield self._bias(number)

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """The same numbers in the same order, some rows of a matrix at a time."""
        for number in range(self.depth):
            fan_in, fan_out = self.widths[number : number + 2]
            step = max(1, PIECE // fan_out)
            for start in range(0, fan_in, step):
                yield self._rows(number, range(start, min(start + step, fan_in)))
            yield self._bias(number)

    def places(self) -> list[Place]:
        """Where this rank's parameters lie in the whole network, in the order of the store."""
        places = []
        for cut in reversed(self.cuts):
            W, b = (self.store.parameters.get(f"{kind}{cut.number}") for kind in "Wb")
            assert W is not None
            places.append(Place(W.name, cut.whole, (_slice(cut.rows), _slice(cut.columns)), W))
            if b is not None:
                places.append(Place(b.name, cut.whole[1:], (_slice(cut.bias),), b))
        return places

    def _rows(self, number: int, rows: range) -> NDArray[np.float32]:
        """These rows of the whole W of a layer, on all ranks."""
        whole_IO = np.zeros((len(rows), self.widths[number + 1]), np.float32)
        if cut := self._cut(number):
            start, stop = (min(max(end, cut.rows.start), cut.rows.stop) for end in (rows.start, rows.stop))
            held = self.store.parameters[f"W{number}"].value[start - cut.rows.start : stop - cut.rows.start]
            to = slice(start - rows.start, stop - rows.start) if start < stop else slice(0, 0)
            whole_IO[to, _slice(cut.columns)] = self.store.device.to_host(held)
        return self._everyones(whole_IO)

    def _bias(self, number: int) -> NDArray[np.float32]:
        """The whole b of a layer, on all ranks."""
        whole_O = np.zeros(self.widths[number + 1], np.float32)
        if (cut := self._cut(number)) and cut.bias:
            whole_O[_slice(cut.bias)] = self.store.device.to_host(self.store.parameters[f"b{number}"].value)
        return self._everyones(whole_O)

    def _everyones(self, whole: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sum of what is zero but on one rank, as integers of the same bits: 0.0 + -0.0 would be 0.0."""
        self._host.sum(whole.view(np.int32))
        return whole

    def _cut(self, number: int) -> Cut | None:
        return next((cut for cut in self.cuts if cut.number == number), None)

    def _layer(self, cut: Cut) -> Layer:
        ws, relu, tensor = self.workspace, cut.number < self.depth - 1, self.grid.tensor
        layer: Layer
        if tensor.size == 1:
            layer = Linear(ws, self.store, cut.number, relu)
            if self.backlog:
                self.backlog.take_from(layer)
        elif cut.kind == "columns":
            layer = ColumnParallelLinear(ws, self.store, cut.number, relu, tensor)
        else:
            layer = RowParallelLinear(ws, self.store, cut.number, relu, tensor, cut.rows)
        return layer if cut.columns == cut.slice else Portion(ws, layer, cut)

    def _with_dropout(self, linear: Sequence[Layer], dropout: float) -> list[Layer]:
        """A dropout behind each hidden layer, which drops of a slice what it would drop of the whole."""
        layers: list[Layer] = []
        for cut, layer in zip(self.cuts, linear, strict=True):
            layers.append(layer)
            if dropout and cut.number < self.depth - 1 and cut.ends:
                layers.append(Dropout(self.workspace, dropout, cut.number, cut.slice.start))
        return layers


def _slice(span: range) -> slice:
    return slice(span.start, span.stop)
