"""`mpi-parallel VERB …`: the same as `python -m mpi_parallel.VERB …`."""

from __future__ import annotations

import difflib
import runpy
import sys

from mpi_parallel.commands import VERBS

ALL = (*VERBS, "completion")


def main() -> None:
    """Run the entry point that the first argument names, with the rest of the arguments."""
    if len(sys.argv) < 2 or sys.argv[1] not in ALL:
        near = difflib.get_close_matches(sys.argv[1], ALL, n=1) if len(sys.argv) > 1 else []
        hint = f"{sys.argv[1]}: did you mean {near[0]}?\n" if near else ""
        sys.exit(f"{hint}usage: mpi-parallel VERB ...   with one of: {', '.join(ALL)}   (VERB --help tells more)")
    verb = sys.argv.pop(1)
    runpy.run_module(f"mpi_parallel.{verb}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
