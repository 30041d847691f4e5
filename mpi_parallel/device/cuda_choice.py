"""Which GPU a rank takes, who else has it, and what to tell when there is none or it is lost."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from mpi_parallel.options import InputError

TOO_OLD = ("cudaErrorInsufficientDriver", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "cudaErrorUnsupportedPtxVersion")
HIDDEN = "CUDA_VISIBLE_DEVICES"
OLDEST = 12  # CUDA for which there is an extra of this package
# Exceptions of CuPy, and of cublaslt.py, by their names, as only runs on a GPU import these.
OUT_OF_MEMORY, LOST = "OutOfMemoryError", ("CUDARuntimeError", "CUDADriverError", "NcclError", "CUBLASError", "LtError")


class NoGPU(Exception):
    """There is no GPU to be had, and why."""

    @property
    def hint(self) -> str:
        """The same where CuPy is installed, and so a GPU expected; else nothing."""
        return "" if isinstance(self.__cause__, ModuleNotFoundError) else str(self)


class Chosen(NamedTuple):
    """How many GPUs this rank sees, the number of its own, and its name on the node."""

    visible: int
    number: int
    place: str


def import_cupy() -> ModuleType:
    """CuPy. Raises NoGPU where it is not installed or does not load."""
    try:
        import cupy
    except ImportError as error:
        raise NoGPU(
            f"CuPy cannot be imported ({error}); install mpi_parallel[cuda12] or mpi_parallel[cuda13]"
        ) from error
    module: ModuleType = cupy
    return module


def choose(cupy: ModuleType, node_rank: int) -> Chosen:
    """The GPU of a rank of this number on its node: ranks take those that they see in turn.

    A scheduler that shows each rank its own GPU alone, and one that shows all GPUs to all ranks, both come out right;
    `place`, the GPU's own name, tells whether two ranks have the same one. Raises NoGPU.
    """
    visible = _count(cupy)
    number = node_rank % visible
    properties = cupy.cuda.runtime.getDeviceProperties(number)
    unique = properties.get("uuid")
    bus = cupy.cuda.runtime.deviceGetPCIBusId(number)
    bus = bus.decode() if isinstance(bus, bytes) else str(bus)
    name = f"{properties['name'].decode()} at {bus.lower()}"
    if isinstance(unique, bytes) and any(unique):  # parts of one GPU (MIG) share its place on the bus
        name += f" ({unique[:4].hex()})"
    return Chosen(visible, number, name)


def _count(cupy: ModuleType) -> int:
    try:
        count: int = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        driver = cupy.cuda.runtime.driverGetVersion()
        why = _remedy(error) if driver else ": this machine has no NVIDIA driver"
        raise NoGPU(f"CuPy finds no GPU ({error}){why}") from None
    if count == 0:
        raise NoGPU(f"CuPy finds no GPU ({HIDDEN} hides all of them?)")
    return count


def driver_complaint(cupy: ModuleType) -> None:
    """Raises NoGPU where the driver is of an older major version than CuPy's CUDA: nothing would run."""
    driver, runtime = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
    if driver // 1000 < runtime // 1000:
        install = f"install mpi_parallel[cuda{driver // 1000}], or " if driver // 1000 >= OLDEST else ""
        raise NoGPU(
            f"the NVIDIA driver runs CUDA up to {_version(driver)}, and CuPy {cupy.__version__} is built for "
            f"{_version(runtime)}: {install}have the driver updated"
        )


def _remedy(error: BaseException) -> str:
    if any(name in str(error) for name in TOO_OLD):
        return ": the NVIDIA driver is too old for this CuPy: `nvidia-smi` shows the newest CUDA that it runs"
    return ""


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def gpu_map(hosts: Sequence[str], places: Sequence[str]) -> tuple[list[str], list[str]]:
    """For people: lines that tell which ranks have which GPU, and complaints about GPUs that several ranks share."""
    ranks: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, where in enumerate(zip(hosts, places, strict=True)):
        ranks[where].append(rank)
    lines = [f"rank{'s' * (len(who) > 1)} {_numbers(who)}: {place} on {host}" for (host, place), who in ranks.items()]
    complaints = [
        f"ranks {_numbers(who)} share one GPU, {place} on {host}: they take turns, and its memory is divided. "
        f"Start a rank a GPU, or look at {HIDDEN} and the scheduler's --gpus-per-task"
        for (host, place), who in ranks.items()
        if len(who) > 1
    ]
    return lines, complaints


def _numbers(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")


def explain(error: BaseException) -> InputError | str | None:
    """What an exception of CuPy means for the user: a text for a GPU that failed, else an InputError.

    None for all other exceptions.
    """
    cupy: Any = sys.modules.get("cupy")
    name = type(error).__name__
    if cupy is None or not type(error).__module__.startswith(("cupy", "mpi_parallel.device.", "tests.")):
        return None
    if name == OUT_OF_MEMORY or "cudaErrorMemoryAllocation" in str(error):
        return InputError(_too_little(cupy, error))
    if name in LOST and (remedy := _remedy(error)):
        return InputError(f"the GPU cannot be used: {error}{remedy}")
    if name in LOST:
        return (
            f"the GPU failed: {error}. Its work since the last checkpoint is lost: start again with --resume auto. "
            "If it happens again, have the machine looked at (`dmesg | grep -i xid`, `nvidia-smi -q -d ECC`)"
        )
    return None


def _too_little(cupy: Any, error: BaseException) -> str:
    free, whole = cupy.cuda.runtime.memGetInfo()
    return (
        f"the GPU's memory does not suffice: {error}; {free / 2**30:.1f} of {whole / 2**30:.1f} GiB are free. Take a "
        "smaller --micro-batch or --memory, more ranks, or cut the network with --tensor or --pipe"
    )
