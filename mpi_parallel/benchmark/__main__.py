"""Measure this machine: `mpirun -n 2 python -m mpi_parallel.benchmark VERB`. Tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Callable

from mpi_parallel.benchmark import checkpoint, data, imports, merge, peers, scaling, step
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import InputError

VERBS: dict[str, Callable[[Communicator, list[str]], int]] = {
    "step": step.main,
    "merge": merge.main,
    "data": data.main,
    "peers": peers.main,
    "scaling": scaling.main,
    "checkpoint": checkpoint.main,
    "imports": imports.main,
}


def main(world: Communicator, arguments: list[str]) -> int:
    """Run the benchmark that the first argument names; the exit status."""
    verb, *rest = arguments or ["nothing"]
    if verb not in VERBS:
        raise InputError(f"benchmark of what? Choose from: {', '.join(VERBS)} (got {verb})")
    return VERBS[verb](world, rest)


if __name__ == "__main__":
    launch(main)
