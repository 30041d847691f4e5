"""Weight gradients of small micro-batches, taken late and for several of them together.

A product x^T dz of 64 rows is bound by memory: it reads and writes all of dW for few multiplications. So a stage keeps
x and dz of its layers for a few micro-batches and takes one product for all of their rows. It does so after it has
sent dx, for which the stage before waits (Qi et al. 2023, zero bubble pipeline parallelism).
"""

from __future__ import annotations

from mpi_parallel.device import Array, Device
from mpi_parallel.nn.layers import Linear, Ready

ROWS = 256  # that are taken together: with more of them BLAS is hardly faster


class Backlog:
    """What the layers of a stage still have to do."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.room = 0  # rows that are taken together; without room each micro-batch is settled by itself, uncopied
        self._layers: list[Late] = []  # in the order in which backward comes by

    def take_from(self, layer: Linear) -> None:
        """From now on its weight gradient is taken here; layers come in the order of forward."""
        self._layers.insert(0, Late(self, layer))

    def settle(self, ready: Ready) -> None:
        """Take the weight gradients of all rows that are here; `ready` hears of each layer."""
        for late in self._layers:
            late.settle()
            ready(late.layer.parameters)

    @property
    def nbytes(self) -> int:
        """Memory of the copies."""
        return sum(copies.nbytes for late in self._layers for copies in late.copies)


class Copies:
    """Room for some rows of an array, in memory that is used again and again."""

    def __init__(self, device: Device) -> None:
        self.device, self._memory = device, device.empty_bytes(0)

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return int(self._memory.nbytes)

    def rows(self, count: int, like: Array) -> Array:
        """(count, M) of the same type as `like` (B, M); what was in the rows before stays there."""
        nbytes = count * like.shape[1] * like.dtype.itemsize
        if self.nbytes < nbytes:
            self._memory = self.device.empty_bytes(nbytes)
        return self._memory[:nbytes].view(like.dtype).reshape((count, like.shape[1]))


class Late:
    """x (B, I) and dz (B, O) of one layer until their product is taken."""

    def __init__(self, backlog: Backlog, layer: Linear) -> None:
        self.backlog, self.layer, self._take = backlog, layer, layer.weight_gradient
        self.copies = Copies(backlog.device), Copies(backlog.device)
        self._held: list[Array] = []
        self._rows = 0
        layer.weight_gradient = self.add

    def add(self, x_BI: Array, dz_BO: Array) -> None:
        """Remember these rows: copies of them, or where they lie if they are settled before that is needed again."""
        start, self._rows = self._rows, self._rows + len(x_BI)
        if not self.backlog.room:
            self._held = [x_BI, dz_BO]
            return
        self._held = [copies.rows(self.backlog.room, a) for copies, a in zip(self.copies, (x_BI, dz_BO), strict=True)]
        for held, new in zip(self._held, (x_BI, dz_BO), strict=True):
            held[start : self._rows] = new

    def settle(self) -> None:
        """Take the product of what is here."""
        x_BI, dz_BO = (held[: self._rows] for held in self._held)
        self._take(x_BI, dz_BO)
        self._rows = 0
