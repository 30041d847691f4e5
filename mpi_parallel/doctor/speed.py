"""Quick measurements, some seconds in all: memory, matrix products, messages, clocks, disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mpi_parallel.doctor.report import Section
from mpi_parallel.mpi.clocks import seconds_behind
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.probes import ping_pong

COPIED = 1 << 26  # bytes of an array that is copied: far more than the caches hold
WIDE = 1024  # of a matrix product
SMALL, LARGE = 8, 1 << 22  # bytes of a message
GRADIENTS = 109_386  # float32 numbers: those of the default network
ON_DISK = 1 << 26  # bytes that are written and read
SKEW = 0.5  # seconds between two clocks from which on logs and file times confuse people
ROUNDS = 5


def check(folder: Path | None, world: Communicator) -> Section:
    """Measure; in `folder` the disk, with None nothing of it."""
    section = Section("speed")
    _memory(section, world)
    _products(section, world)
    _messages(section, world)
    if folder is not None:
        _disk(section, folder, world)
    return section


def clocks(world: Communicator) -> Section:
    """How far the ranks' clocks are apart."""
    section = Section("clocks")
    offsets = -world.gather(np.array(seconds_behind(world, time.time)))[:, 0]  # ahead of rank 0
    skew = float(offsets.max() - offsets.min())
    section.tell("skew", f"{_seconds(skew)} between the clocks of the ranks", skew=skew, offsets=offsets.tolist())
    if skew > SKEW:
        first, last = int(offsets.argmin()), int(offsets.argmax())
        section.warnings.append(
            f"the clock of rank {last} is {skew:.2f} s ahead of rank {first}'s: times in logs do not fit together"
        )
    return section


def _memory(section: Section, world: Communicator) -> None:
    a, b = np.ones(COPIED // 8), np.empty(COPIED // 8)
    seconds = _together(lambda: np.copyto(b, a), world)
    rate = world.total(2 * COPIED / seconds)
    section.tell("memory", f"{rate / 1e9:.1f} GB/s read and written by all ranks", memory_bytes_per_second=rate)


def _products(section: Section, world: Communicator) -> None:
    a = np.ones((WIDE, WIDE), np.float32)
    c = np.empty_like(a)
    seconds = _together(lambda: np.matmul(a, a, out=c), world)
    rate = world.total(2 * WIDE**3 / seconds)
    section.tell("products", f"{rate / 1e9:.0f} GFLOP/s in float32 on the cores of all ranks", sgemm_flops=rate)


def _messages(section: Section, world: Communicator) -> None:
    """Between rank 0 and a rank of its node, and one of another node."""
    hosts = world.gather_text(os.uname().nodename)
    partners = {"in a node": (r for r in range(1, world.size) if hosts[r] == hosts[0]),
                "between nodes": (r for r in range(1, world.size) if hosts[r] != hosts[0])}  # fmt: skip
    for name, ranks in partners.items():
        if (partner := next(ranks, None)) is not None:
            latency, seconds = ping_pong(world, partner, SMALL, 200), ping_pong(world, partner, LARGE, 12)
            key = name.replace(" ", "_")
            section.tell(
                "messages", f"{name} (ranks 0 and {partner}): {1e6 * latency:.1f} us, {LARGE / seconds / 1e9:.2f} GB/s",
                **{f"latency_{key}": latency, f"bytes_per_second_{key}": LARGE / seconds},
            )  # fmt: skip
    if world.size > 1:
        gradients = np.zeros(GRADIENTS, np.float32)
        seconds = _together(lambda: world.sum(gradients), world)
        section.tell(
            "Allreduce", f"{1e6 * seconds:.0f} us for the {gradients.nbytes:,} bytes of the default network",
            allreduce_seconds=seconds,
        )  # fmt: skip


def _disk(section: Section, folder: Path, world: Communicator) -> None:
    """Rank 0 writes a file to the disk, and reads it back from there as far as the system lets it."""
    rates = np.zeros(2)
    if world.rank == 0:
        path = folder / f".doctor-{os.getpid()}"
        try:
            rates[:] = write_and_read(path)
        except OSError as error:
            section.warnings.append(f"{folder}: the disk was not measured: {error}")
        finally:
            path.unlink(missing_ok=True)
    written, read = world.broadcast(rates).tolist()
    if not written:
        return
    section.tell(
        "disk", f"{written / 1e6:,.0f} MB/s written and flushed, {read / 1e6:,.0f} MB/s read by rank 0",
        disk_write_bytes_per_second=written, disk_read_bytes_per_second=read,
    )  # fmt: skip


def write_and_read(path: Path, nbytes: int = ON_DISK) -> tuple[float, float]:
    """Bytes per second to a new file, flushed, and back."""
    data = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        file.write(data.data)
        os.fsync(file.fileno())
        written = time.perf_counter() - began
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that it is read from the disk, not memory
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        file.readinto(data.data)
    return nbytes / written, nbytes / (time.perf_counter() - began)


def _together(call: Callable[[], object], world: Communicator) -> float:
    """The quickest of some rounds that all ranks begin together."""
    call()
    times = []
    for _ in range(ROUNDS):
        world.meet()
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _seconds(value: float) -> str:
    return f"{1e6 * value:.1f} us" if value < 1e-3 else f"{1e3 * value:.1f} ms" if value < 1 else f"{value:.1f} s"
