"""How much memory a rank may take for its rows, and one copy of rows for several ranks of a node."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.device import Device
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options.values import bytes_of

SHARE = 0.5  # of what is available: the rest is for the network, the file system's cache and other people
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Budget:
    """What one rank may take for rows, and how they are to be held: auto, resident or streaming."""

    bytes: float = float("inf")
    holding: str = "auto"
    window: int = 256 << 20  # of all shards together

    def fits(self, need: int) -> bool:
        """Whether rows of so many bytes are to be resident."""
        return need <= self.bytes if self.holding == "auto" else self.holding == "resident"

    def less(self, used: int) -> Budget:
        """What is left of it."""
        return Budget(self.bytes - used, self.holding, self.window)


def budget_of(options: DataOptions, node: Communicator, device: Device) -> Budget:
    """This rank's part of `--memory`, or of half of what the node has available; of its GPU likewise."""
    least = -node.maximum(-available())
    whole = SHARE * least if options.memory is None else bytes_of(options.memory)
    part = whole / node.size
    if device.kind == "cuda":
        sharing = node.gather_text(device.place).count(device.place)
        part = min(part, SHARE * device.xp.cuda.runtime.memGetInfo()[0] / sharing)
    return Budget(part, options.holding, bytes_of(options.window))


def available(
    meminfo: Path = Path("/proc/meminfo"), groups: Path = Path("/proc/self/cgroup"), mounted: Path = CGROUPS
) -> int:
    """Bytes that this node, and the job's control group where there is one, can still give."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) << 10
    for line in groups.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            free = min(free, _left(mounted, group, "memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            free = min(free, _left(mounted / "memory", group, "memory.limit_in_bytes", "memory.usage_in_bytes"))
    return free


def resident() -> int:
    """Bytes that this process has in memory; what several processes share counts in parts (proportional set size)."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))


def _left(root: Path, group: str, limit: str, used: str) -> int:
    """What the group and those that it is in leave; a lot where they set no limit."""
    folder, least = root / group.lstrip("/"), 2**62
    while folder.is_relative_to(root):
        with suppress(OSError, ValueError):  # not mounted here, or "max"
            least = min(least, int((folder / limit).read_text()) - int((folder / used).read_text()))
        folder = folder.parent
    return max(least, 0)


class Shared:
    """One array for all ranks of `peers`, which share a node, in an MPI shared-memory window; one rank needs none."""

    def __init__(self, peers: Communicator | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Collective. The contents are arbitrary."""
        self.window: MPI.Win | None = None
        if peers is None or peers.size == 1:
            self.array: NDArray[Any] = np.empty(shape, dtype)
            return
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.window = MPI.Win.Allocate_shared(nbytes if peers.rank == 0 else 0, dtype.itemsize, comm=peers.comm)
        memory, _ = self.window.Shared_query(0)
        self.array = np.asarray(memory, np.uint8)[:nbytes].view(dtype).reshape(shape)
        self.window.Fence()

    def settle(self) -> None:
        """Collective: what every rank has written until now can be read by all."""
        if self.window is not None:
            self.window.Fence()

    def free(self) -> None:
        """Collective: give the window back; the array is dead."""
        if self.window is not None:
            self.window.Free()
