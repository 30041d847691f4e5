"""A trained network as it travels: weights, standardisation, and what they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.options import InputError

Dense = tuple[NDArray[np.float32], NDArray[np.float32]]  # W (in, out) and b (out,)


@dataclass(frozen=True)
class About:
    """A trained network without its weights."""

    widths: tuple[int, ...]  # features, hidden widths, classes: 784 128 64 10
    mean: NDArray[np.float64] | None  # as of Trained
    std: NDArray[np.float64] | None
    image_shape: tuple[int, ...]
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class Trained:
    """Dense relu layers and one Dense layer of logits, and the standardisation of what goes in.

    `mean` and `std` are (1,) or (features,), both None where a file does not tell them; `std` has no zeros.
    """

    layers: Sequence[Dense]
    mean: NDArray[np.float64] | None = None
    std: NDArray[np.float64] | None = None
    shape: tuple[int, ...] | None = None  # of an image
    classes: tuple[str, ...] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)  # where it comes from

    @property
    def widths(self) -> tuple[int, ...]:
        """Features, hidden widths, classes: 784 128 64 10."""
        return (self.layers[0][0].shape[0], *(W_IO.shape[1] for W_IO, _ in self.layers))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of what goes in, without the rows; flat where nothing is known."""
        return self.shape or (self.widths[0],)

    @property
    def about(self) -> About:
        return About(self.widths, self.mean, self.std, self.image_shape, self.classes)

    def weights(self) -> list[NDArray[np.float32]]:
        """W0, b0, W1, b1, ... as `MLP.weights` gives them."""
        return [array for layer in self.layers for array in layer]

    def folded(self) -> Trained:
        """The same network for raw pixels: the standardisation is part of the first layer.

        (x - m) / s W + b = x (W / s) + (b - (m / s) W).
        """
        if self.mean is None or self.std is None:
            return self
        (W_IO, b_O), *others = self.layers
        scaled = W_IO / np.broadcast_to(self.std, W_IO.shape[0])[:, None]
        shifted = b_O - np.broadcast_to(self.mean, W_IO.shape[0]) @ scaled
        first = scaled.astype(np.float32), shifted.astype(np.float32)
        return replace(self, layers=[first, *others], mean=None, std=None)


def chained(layers: Sequence[Dense], where: str) -> list[Dense]:
    """The layers as contiguous float32. Raises InputError where they do not fit one another."""
    if not layers:
        raise InputError(f"{where}: there are no dense layers")
    for number, (W_IO, b_O) in enumerate(layers):
        before = layers[number - 1][0].shape[1] if number else W_IO.shape[0]
        if W_IO.shape[0] != before or b_O.shape != W_IO.shape[1:]:
            raise InputError(
                f"{where}: layer {number} has weights {W_IO.shape} and biases {b_O.shape} behind a layer of {before}"
            )
    return [(np.ascontiguousarray(W, np.float32), np.ascontiguousarray(b, np.float32)) for W, b in layers]
