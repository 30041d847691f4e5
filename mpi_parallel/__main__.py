"""`mpi-parallel VERB …`: the same as `python -m mpi_parallel.VERB …`."""

from __future__ import annotations

import runpy
import sys

from mpi_parallel.commands import COMMANDS, VERBS
from mpi_parallel.options import similar
from mpi_parallel.output import be_patient

ALL = (*VERBS, "completion")
ELSEWHERE = {
    "benchmark": "Measure this machine: step, merge, scaling, data, checkpoint, imports or peers.",
    "completion": "Print what bash, zsh or tcsh needs to complete this command.",
}


def main() -> None:
    """Run the entry point that the first argument names, with the rest of the arguments."""
    be_patient()
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(overview())
        return
    if sys.argv[1] not in ALL:
        hint = similar(sys.argv[1], {verb: verb for verb in ALL})
        usage = f"usage: mpi-parallel VERB ...   with one of: {', '.join(ALL)}   (VERB --help tells more)"
        sys.exit(f"there is no {sys.argv[1]}{hint}\n{usage}")
    verb = sys.argv.pop(1)
    runpy.run_module(f"mpi_parallel.{verb}", run_name="__main__", alter_sys=True)


def overview() -> str:
    """All verbs, with what they are for."""
    import mpi4py

    mpi4py.rc.initialize = False  # nothing here speaks to other ranks
    lines = [f"  {verb:11} {ELSEWHERE.get(verb) or COMMANDS[verb].sentence}" for verb in ALL]
    return "\n".join(
        ["usage: mpi-parallel VERB ...        under mpirun, srun or alone", "", *lines, "", "VERB --help tells more."]
    )


if __name__ == "__main__":
    main()
