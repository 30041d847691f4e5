"""`mpirun -n 2 python -m mpi_parallel.benchmark step|data`: tables for people, and with --to JSON for programs."""

from __future__ import annotations

from collections.abc import Callable

from mpi_parallel.benchmark import data, step
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import InputError

BENCHMARKS: dict[str, Callable[[Communicator, list[str]], int]] = {"step": step.run, "data": data.run}


def main(world: Communicator, arguments: list[str]) -> int:
    """Run the benchmark that the first argument names; the exit status."""
    name = arguments[0] if arguments else "nothing"
    if name not in BENCHMARKS:
        raise InputError(f"benchmark of what? Choose from: {', '.join(BENCHMARKS)} (got {name})")
    return BENCHMARKS[name](world, arguments[1:])


if __name__ == "__main__":
    launch(main)
