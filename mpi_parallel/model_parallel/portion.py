"""A layer that several stages of a pipeline share, each with some of its columns.

    stage s      [ h ]            ->  y_0 = relu(h W_0 + b_0)  ->  [ h | y_0 ]         W = [ W_0 | W_1 ]
    stage s + 1  [ h | y_0 ]      ->  y_1 = relu(h W_1 + b_1)  ->  [ y_0 | y_1 ] = y

    stage s + 1  [ dy_0 | dy_1 ]  ->  dh_1 = dz_1 W_1^T        ->  [ dh_1 | dy_0 ]
    stage s      [ dh_1 | dy_0 ]  ->  dh = dh_1 + dz_0 W_0^T   ->  [ dh ]

Stages between the two take [ h | y_0 ] and pass on [ h | y_0 | y_1 ]. Letters of the shapes: B rows, I inputs of the
layer, M numbers that come in.
"""

from __future__ import annotations

from mpi_parallel.device import Array
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.model_parallel.placement import Cut
from mpi_parallel.nn.layers import Backward, Layer


class Portion:
    """Some columns of a layer: passes on what the stages behind need, too, and takes the gradient of that."""

    def __init__(self, ws: Workspace, layer: Layer, cut: Cut) -> None:
        """`layer` computes the columns of the cut, bias and relu included, from all inputs."""
        self.ws, self.layer, self.cut, self.parameters = ws, layer, cut, layer.parameters
        self.first = cut.number == 0  # nobody wants the gradient of the images

    def forward(self, x_BM: Array, keys: Array | None = None) -> tuple[Array, Backward]:
        I, begun = self.cut.fan_in, self.cut.begun  # noqa: E741, a letter of the shapes
        x_BI = self._copy(x_BM[:, :I]) if begun else x_BM
        mine, layer_backward = self.layer.forward(x_BI, keys)
        y = self._joined([x_BM[:, I:] if self.cut.ends else x_BM, mine])

        def backward(dy: Array) -> Array:
            passed = 0 if self.cut.ends or self.first else I  # columns of dh
            dmine = self._copy(dy[:, passed + begun :])
            dx_BI = layer_backward(dmine)
            if self.first:
                return self._copy(dy[:, :begun])
            if passed:
                dx_BI += dy[:, :I]
                dx_BI = self.ws.narrowed(dx_BI)
            return self._joined([dx_BI, dy[:, passed : passed + begun]]) if begun else dx_BI

        return y, backward

    def _copy(self, part: Array) -> Array:
        """Some columns as an array of their own, which kernels and matrix products want."""
        return self._joined([part])

    def _joined(self, parts: list[Array]) -> Array:
        """Arrays side by side."""
        whole = self.ws.empty((parts[0].shape[0], sum(part.shape[1] for part in parts)))
        start = 0
        for part in parts:
            whole[:, start : (start := start + part.shape[1])] = part
        return whole
