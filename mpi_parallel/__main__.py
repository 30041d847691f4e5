"""`mpi-parallel VERB …`: the same as `python -m mpi_parallel.VERB …`."""

from __future__ import annotations

import runpy
import sys

from mpi_parallel.commands import VERBS

ALL = (*VERBS, "completion")


def main() -> None:
    """Run the entry point that the first argument names, with the rest of the arguments."""
    if len(sys.argv) < 2 or sys.argv[1] not in ALL:
        sys.exit(f"usage: mpi-parallel VERB ...   with one of: {', '.join(ALL)}   (VERB --help tells more)")
    verb = sys.argv.pop(1)
    runpy.run_module(f"mpi_parallel.{verb}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
