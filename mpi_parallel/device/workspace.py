"""A bump arena: within a step arrays are cut from one block that starts again at the next step."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpi_parallel.device import Array, Device
from mpi_parallel.device.host import ALIGNMENT


class Workspace:
    """Memory for what lives no longer than a step.

    The same sequence of requests takes the same addresses, so a step that repeats allocates nothing. The first step of
    a new size finds the arena too small: it is served by arrays of its own, and `reset` makes the arena large enough.
    """

    def __init__(self, device: Device, precision: str = "float32") -> None:
        """`precision` is that of the numbers that go into matrix products (nn/precision.py)."""
        self.device, self.precision = device, precision
        self.storage = np.dtype(device.storage(precision))
        self.xp, self.kernels = device.xp, device.kernels
        self.arena: Array = device.empty_bytes(0)  # the block; another one when it had to grow
        self._views: dict[tuple[int, tuple[int, ...], Any], tuple[Array, int]] = {}
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """An array with arbitrary contents that belongs to the caller until `reset`."""
        key = (self._used, shape, dtype)
        found = self._views.get(key)
        if found is None:
            found = self._views[key] = self._cut(shape, np.dtype(dtype))
        array, self._used = found
        return array

    def operand(self, shape: tuple[int, ...]) -> Array:
        """The same for what goes into matrix products, of the type that the device keeps their format in."""
        return self.empty(shape, self.storage)

    def narrowed(self, a: Array) -> Array:
        """These numbers rounded to the format of operands: in place where that has no type of its own."""
        if self.precision == "float32" or a.dtype == self.storage != np.float32:
            return a
        out = a if a.dtype == self.storage else self.operand(a.shape)
        self.kernels.narrow(a, out, self.precision)
        return out

    def reset(self) -> None:
        """Start again: every array handed out since the last reset is dead."""
        if self._used > self.arena.nbytes:
            self._views.clear()
            self.arena = self.device.empty_bytes(self._used)
        self._used = 0

    @property
    def settled(self) -> Array | None:
        """The memory that everything since the last reset was cut from; None where it did not suffice."""
        return self.arena if self._used <= self.arena.nbytes else None

    @property
    def nbytes(self) -> int:
        """Size of the arena."""
        return int(self.arena.nbytes)

    def _cut(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Array, int]:
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        end = self._used + -(-nbytes // ALIGNMENT) * ALIGNMENT
        if end > self.arena.nbytes:
            return self.xp.empty(shape, dtype), end
        return self.arena[self._used : self._used + nbytes].view(dtype).reshape(shape), end


class Ring(Workspace):
    """Several arenas, numbered from 0, one of them in use: what was cut from the others lives until they are reset."""

    def __init__(self, device: Device, precision: str = "float32") -> None:
        super().__init__(device, precision)
        self._turned: dict[int, tuple[Array, dict[Any, tuple[Array, int]], int]] = {}
        self._number = 0

    def turn(self, number: int) -> None:
        """From now on cut from, and reset, this arena."""
        if number != self._number:
            self._turned[self._number] = self.arena, self._views, self._used
            if number not in self._turned:
                self._turned[number] = self.device.empty_bytes(0), {}, 0
            self.arena, self._views, self._used = self._turned.pop(number)
            self._number = number

    @property
    def nbytes(self) -> int:
        """Size of all arenas."""
        return int(self.arena.nbytes + sum(arena.nbytes for arena, _, _ in self._turned.values()))
