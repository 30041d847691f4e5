"""Measure this machine: `mpirun -n 2 python -m mpi_parallel.benchmark VERB`. Tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Callable

from mpi_parallel.benchmark import checkpoint, data, imports, merge, peers, scaling, step
from mpi_parallel.commands import COMMANDS
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import InputError, similar

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
    if verb in ("-h", "--help"):
        if world.rank == 0:
            print(overview(), flush=True)
        return 0
    if verb not in VERBS:
        near = similar(verb, {known: known for known in VERBS})
        raise InputError(f"benchmark of what? Choose from: {', '.join(VERBS)} (got {verb}{near})")
    return VERBS[verb](world, rest)


def overview() -> str:
    """All of them, with what they are for."""
    lines = (f"  {verb:11} {COMMANDS[f'benchmark {verb}'].sentence}" for verb in VERBS)
    usage = "usage: python -m mpi_parallel.benchmark VERB ...        under mpirun, srun or alone"
    return "\n".join([usage, "", *lines, "", "VERB --help tells more."])


if __name__ == "__main__":
    launch(main)
