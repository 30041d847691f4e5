"""What every merger has: three verbs, and the fact `owned`. The plainest answers stand here."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.device import Array
from mpi_parallel.device.relay import Relay
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.store import Parameter, ParameterStore
from mpi_parallel.result_merging.metrics import Totals


class Merger(ABC):
    """Makes the ranks' gradients one. `owned` is the slice of the store whose optimizer step this rank takes.

    In a step: `ready` during backward, `merge`, then the optimizer reads `store.terms` in the owned slice and writes
    its weights, then `publish`. All verbs are collective. Results do not depend on which of the ranks asks: totals and
    norm are the same bits on all.
    """

    name: str  # as --merge has it
    divides = False  # whether ranks own slices, though perhaps one all and the others none
    overlaps = False  # whether it does anything in `ready`
    collects = False  # whether it does anything in `collect`

    def __init__(self, store: ParameterStore, comm: Communicator) -> None:
        """Of the store, which is alike on all ranks of `comm`."""
        self.store, self.comm = store, comm
        self.owned = slice(0, store.size)

    @property
    def groups(self) -> int:
        """How often this rank collects in a step."""
        return 1

    def ready(self, parameters: Sequence[Parameter]) -> None:  # noqa: B027, mergers that wait for all gradients ignore it
        """The gradients of these parameters are complete on this rank."""

    def collect(self) -> None:  # noqa: B027, the sum of all rows is what these mergers want
        """The store holds the gradient of one more group of rows; only the exact merger keeps groups apart."""

    @abstractmethod
    def merge(self) -> Totals:
        """Everyone's gradient (summed over rows, in the owned slice at least), count, loss and flags."""

    def relay(self) -> Relay | None:
        """How device and host do what `merge` does in turn; None where they cannot."""
        return None

    def relay_squares(self, squares: Array) -> Relay:
        """Of who relays: how the square of `norm` becomes the sum of these, (parameters,) float64 on the device."""

        def square() -> None:
            self.store.device.kernels.squares(self.store.gradients[self.owned], squares[:1])

        return Relay(square)

    def relay_weights(self) -> Relay:
        """Of who relays: how they do what `publish` does."""
        return Relay(self.publish)

    def norm(self) -> float:
        """Euclidean norm of the whole summed gradient; call it between merge and the optimizer's step.

        It is rank 0's: processors of two makes round the same sum differently, and all ranks have to clip alike.
        """
        mine = self._squares(slice(0, self.store.size)) if self.comm.rank == 0 else 0.0
        return math.sqrt(self.comm.total(mine))

    def squares(self) -> list[float]:
        """Terms whose sum is the norm's square, as many as the store has parameters at the most."""
        return [self.norm() ** 2]

    def total(self, sums: NDArray[np.float64]) -> None:
        """Sum numbers, in place, over the ranks that own the other slices; nothing to do for who owns everything."""
        if self.divides:
            self.comm.on_host().sum(sums)

    def publish(self) -> None:  # noqa: B027, where every rank takes the whole step there is nothing to do
        """Everyone's weights, after the owners have updated theirs."""

    def travels(self) -> Iterable[tuple[str, float, float]]:
        """What went between ranks beside the arithmetic in the last step: (what, begun, ended), by perf_counter."""
        return ()

    def close(self) -> None:  # noqa: B027, most hold nothing
        """Give back what is held beside the store, which stays usable; all ranks together."""

    def _squares(self, span: slice) -> float:
        """The sum of squares of a slice of the gradient."""
        part = self.store.gradients[span]
        return float(self.store.device.xp.dot(part, part))


def in_order(terms: Sequence[float]) -> float:
    """Their sum, added up one after the other, as `Kernels.advance` does."""
    return float(np.add.accumulate([0.0, *terms])[-1])
