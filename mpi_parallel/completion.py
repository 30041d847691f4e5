"""What a shell needs to complete `mpi-parallel VERB --option`: `mpi-parallel completion bash > FILE`.

The script is made once, by shtab, and knows all verbs, options and choices by itself. So nothing of Python is started
while one types; a completion that asks the program would import MPI at every press of TAB.
"""

from __future__ import annotations

import argparse
from typing import Any

import mpi4py

mpi4py.rc.initialize = False  # nothing here speaks to other ranks, and on a login node MPI may not start

from mpi_parallel.commands import COMMANDS  # noqa: E402, after the line above
from mpi_parallel.options import InputError  # noqa: E402
from mpi_parallel.options.command_line import fill, run_alone  # noqa: E402

SHELLS = ("bash", "zsh", "tcsh")
PLACES = "FILE", "FOLDER", "OUT.h5", "RUN", "SOURCE", "auto|FILE", "runs/NAME"  # behind these a file or folder is meant


def main(arguments: list[str]) -> int:
    """Print the script for a shell; the exit status."""
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise InputError(f"completion for which shell? Choose from: {', '.join(SHELLS)}")
    try:
        import shtab  # here, because only this command needs it
    except ImportError:
        raise InputError("completion needs shtab, which is not there: pip install 'mpi_parallel[completion]'") from None
    print(shtab.complete(_everything(shtab.FILE), shell=arguments[0]))
    return 0


def _everything(file: Any) -> argparse.ArgumentParser:
    """One parser with a parser a verb, as only completion needs it."""
    whole = argparse.ArgumentParser(prog="mpi-parallel")
    verbs = whole.add_subparsers()
    benchmark = verbs.add_parser("benchmark", help="measure this machine").add_subparsers()
    for name, command in COMMANDS.items():
        verb, _, what = name.partition(" ")
        parser = (benchmark if what else verbs).add_parser(what or verb, help=command.sentence)
        fill(parser, command.kind)
        for action in parser._actions:
            if isinstance(action.metavar, str) and action.metavar.startswith(PLACES):
                action.complete = file  # type: ignore[attr-defined]
    verbs.add_parser("completion", help="what a shell needs to complete this").add_argument("shell", choices=SHELLS)
    return whole


if __name__ == "__main__":
    run_alone(main)
