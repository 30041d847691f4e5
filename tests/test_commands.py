"""The table of commands: what --help, completion and the reference are made from."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mpi4py import MPI

import mpi_parallel
from mpi_parallel.benchmark import __main__ as benchmarks
from mpi_parallel.commands import COMMANDS, VERBS, examples
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from mpi_parallel.options.command_line import parse
from tests.once import once

pytestmark = once


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_can_be_typed(name):
    """Each line is accepted by the command that it is of."""
    typed = [line for line in examples(name) if not line.startswith("#")]
    assert typed
    for line in typed:
        words = shlex.split(line)
        module, *arguments = words[words.index("-m") + 1 :]
        first = name.partition(" ")[2]
        if first:
            assert arguments.pop(0) == first
        assert module == f"mpi_parallel.{name.partition(' ')[0]}"
        parse(COMMANDS[name].kind, without_files(arguments), name, "")


def without_files(words):
    """The words without --config, whose file is not here; then --data, which it would have named."""
    if "--config" not in words:
        return words
    place = words.index("--config")
    return [*words[:place], *words[place + 2 :], "--data", "train.h5"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_is_for(name):
    assert re.fullmatch(r"[A-Z].+", COMMANDS[name].sentence)


def test_every_entry_point_is_in_the_table():
    package = Path(mpi_parallel.__file__).parent
    entries = {path.stem for path in package.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    entries |= {path.parent.name for path in package.glob("*/__main__.py")}
    assert entries - {"__main__", "completion"} == set(VERBS)
    assert {name for name in COMMANDS if " " in name} == {f"benchmark {verb}" for verb in benchmarks.VERBS}


def test_benchmark_lists_what_it_measures(capsys):
    assert benchmarks.main(Communicator(MPI.COMM_SELF), ["--help"]) == 0
    assert re.search(r"^  checkpoint +Measure what checkpoints cost", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(InputError, match=r"benchmark of what\?.*\(got stepp; did you mean step\?\)"):
        benchmarks.main(Communicator(MPI.COMM_SELF), ["stepp"])


def test_help_ends_with_examples(capsys):
    with pytest.raises(SystemExit):
        parse(COMMANDS["plot"].kind, ["--help"], "mpi_parallel.plot", COMMANDS["plot"].sentence)
    told = capsys.readouterr().out
    assert told.rstrip().endswith(examples("plot")[-1])
    assert "  # learning curves, compared\n  python -m mpi_parallel.plot runs/first runs/second" in told


def test_alone_it_lists_all_verbs():
    told = subprocess.run([sys.executable, "-m", "mpi_parallel"], capture_output=True, text=True, check=True).stdout
    for verb in (*VERBS, "completion"):
        assert re.search(rf"^  {verb} +[A-Z]", told, re.MULTILINE)
