"""The multilayer perceptron: Dense relu layers, then one Dense layer of logits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device import Array, Device
from mpi_parallel.device.interface import SmallNetwork
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.nn import functional as F
from mpi_parallel.nn.layers import Dropout, Layer, Linear, See, Sequential
from mpi_parallel.nn.store import CORRECT, LOSS, Parameter, ParameterStore

DRAWN = 1 << 20  # random numbers at a time
Block = tuple[int, Array, Array]  # rows in their order: where they begin, their logits (B, K), their labels (B,)

assert (LOSS, CORRECT) == (0, 1)  # where softmax_cross_entropy adds its sums


@dataclass(frozen=True)
class Place:
    """Where a parameter of this rank lies in the whole network: it is `whole[index]` of the array `name` (W0, b0, …).

    Checkpoints and exports have the whole arrays. Each element of them is in the parameter of one rank of a model's.
    """

    name: str
    shape: tuple[int, ...]  # of the whole array
    index: tuple[slice, ...]
    parameter: Parameter  # of the store; its span says where the optimizer's state lies, too


class Network(Protocol):
    """What an engine runs: the whole MLP, or one rank's part of it."""

    widths: tuple[int, ...]  # of the whole network
    store: ParameterStore
    training: Sequential
    inference: Sequential

    @property
    def workspace(self) -> Workspace:
        """Where its layers put what they compute."""

    def loss_gradient(self, z_BK: Array, t_B: Array, tail: Array) -> Array:
        """dz of the summed loss; adds the loss and the number correct to tail[0:2]."""

    def weights(self) -> Iterable[NDArray[np.float32]]:
        """The whole network's, layer by layer; ranks that have parts of it call this together."""

    def all_classes(self, z_BK: Array) -> NDArray[Any]:
        """The logits of all classes in the host's memory; ranks that have slices of them call this together."""

    def pieces(self) -> Iterable[NDArray[np.float32]]:
        """The same numbers in the same order, in pieces that any rank can hold."""

    def places(self) -> Sequence[Place]:
        """Where this rank's parameters lie in the whole network, in the order of the store; nobody need call along."""


class MLP:
    """The network in two forms over the same weights: `training`, with dropout, and `inference`, without."""

    def __init__(
        self,
        device: Device,
        widths: Sequence[int],
        dropout: float = 0.0,
        seed: int | None = 0,
        precision: str = "float32",
    ) -> None:
        """`widths` are the features, the hidden widths and the number of classes: 784 128 64 10.

        Without a `seed` all weights are zero, for others to be put there. `precision` is that of the numbers in matrix
        products (precision.py).
        """
        self.widths = tuple(widths)
        self.depth = len(widths) - 1
        self.workspace = ws = Workspace(device, precision)
        self.store = ParameterStore(device, _shapes(widths), precision)
        linear = [Linear(ws, self.store, number, relu=number < self.depth - 1) for number in range(self.depth)]
        for below, layer in pairwise(linear):
            layer.stand_on(below)
        self.training = Sequential(_stack(ws, linear, dropout))
        starts = tuple((layer.W.span.start, layer.b.span.start) for layer in linear)
        self.small = SmallNetwork(self.widths, starts, dropout)
        self.inference = Sequential(linear)
        if seed is None:
            return
        for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
            start = device.to_device(glorot_uniform(fan_in, fan_out, seed, number))
            self.store.parameters[f"W{number}"].value[...] = start

    def loss_gradient(self, z_BK: Array, t_B: Array, tail: Array) -> Array:
        """dz of the summed cross-entropy; adds the loss and the number correct to tail[0:2]. Overwrites z.

        dz is scaled (nn/precision.py), the loss is not.
        """
        dz_BK = F.softmax_cross_entropy(self.workspace, z_BK, t_B, tail)
        return F.scaled(self.workspace, dz_BK, self.store.loss_scale.factor)

    def fits_at_once(self, rows: int) -> bool:
        """Whether the device has kernels that take so many rows through the whole network."""
        return self.workspace.precision == "float32" and self.workspace.kernels.small_numbers(self.small, rows) > 0

    def at_once(self, x_BF: Array, keys_B: Array, t_B: Array) -> None:
        """Forward and backward of a whole batch: the store gets its gradients and tail, also what `flag_bad` finds."""
        room = self.workspace.empty((self.workspace.kernels.small_numbers(self.small, len(x_BF)),))
        weights, merged = self.store.weights, self.store.merged
        self.workspace.kernels.small_pass(self.small, x_BF, keys_B, t_B, weights, merged, room)

    def weights(self) -> list[NDArray[np.float32]]:
        """Whole weights in the host's memory, layer by layer: W (in, out), then b (out,)."""
        names = (f"{kind}{number}" for number in range(self.depth) for kind in "Wb")
        return [self.store.device.to_host(self.store.parameters[name].value) for name in names]

    def all_classes(self, z_BK: Array) -> NDArray[Any]:
        """Here they are all."""
        return self.store.device.to_host(z_BK)

    def pieces(self) -> list[NDArray[np.float32]]:
        """The same: this rank holds them all."""
        return self.weights()

    def places(self) -> list[Place]:
        """Every parameter is a whole array."""
        whole = self.store.parameters.values()
        return [Place(p.name, p.value.shape, tuple(slice(0, n) for n in p.value.shape), p) for p in whole]


def score_of(model: Network, blocks: Iterable[Block], see: See | None = None) -> tuple[float, int]:
    """Summed loss and number correct of blocks of rows, whose logits it overwrites; the sums of ranks add up exactly.

    Before, `see` is shown where a block begins, the logits of all classes and the labels.
    """
    store, loss, correct = model.store, 0.0, 0
    for start, z_BK, t_B in blocks:
        if see is not None:
            see(start, model.all_classes(z_BK), store.device.to_host(t_B))
        store.tail.fill(0)
        model.loss_gradient(z_BK, t_B, store.tail)
        sums = store.device.to_host(store.tail)
        loss += F.round_finite(float(sums[LOSS]))
        correct += int(sums[CORRECT])
    return loss, correct


def glorot_uniform(
    fan_in: int, fan_out: int, seed: int, number: int, rows: range | None = None, columns: range | None = None
) -> NDArray[np.float32]:
    """(fan_in, fan_out) uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010), by seed and layer.

    With `rows` or `columns` these alone of the same matrix, of which no more is held at a time than DRAWN numbers.
    """
    rows, columns = rows or range(fan_in), columns or range(fan_out)
    limit = np.sqrt(6.0 / (fan_in + fan_out))
    random = np.random.Generator(np.random.PCG64([seed, number]))
    W_IO = np.empty((len(rows), len(columns)), np.float32)
    step = max(1, DRAWN // fan_out)
    for start in range(0, rows.stop, step):
        drawn = random.random((min(step, rows.stop - start), fan_out), dtype=np.float32)
        kept = drawn[max(0, rows.start - start) :, columns.start : columns.stop]
        to = max(0, start - rows.start)
        W_IO[to : to + len(kept)] = (2 * kept - 1) * limit
    return W_IO


def parameter_count(widths: Sequence[int]) -> int:
    """Weights and biases of a network of these widths."""
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))


def weights_sha256(weights: Iterable[NDArray[np.float32]]) -> str:
    """Digest of the weights in the order of `MLP.weights`, as little-endian float32."""
    digest = hashlib.sha256()
    for array in weights:
        digest.update(np.ascontiguousarray(array, "<f4").reshape(-1).data)  # as it lies: no copy
    return digest.hexdigest()


def _shapes(widths: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parameters, the last layer first: backward completes it first."""
    pairs = list(enumerate(pairwise(widths)))
    return [shape for n, (i, o) in reversed(pairs) for shape in ((f"W{n}", (i, o)), (f"b{n}", (o,)))]


def _stack(ws: Workspace, linear: Sequence[Linear], dropout: float) -> list[Layer]:
    """A dropout behind each hidden layer; the last layer gives logits."""
    layers: list[Layer] = []
    for number, layer in enumerate(linear[:-1]):
        layers += [layer, Dropout(ws, dropout, number)] if dropout else [layer]
    return [*layers, linear[-1]]
