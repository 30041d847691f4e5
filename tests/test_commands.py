"""The table of commands: what --help, completion and the reference are made from."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mpi_parallel
from mpi_parallel import completion
from mpi_parallel.commands import COMMANDS, VERBS, examples
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


def test_help_ends_with_examples(capsys):
    with pytest.raises(SystemExit):
        parse(COMMANDS["plot"].kind, ["--help"], "mpi_parallel.plot", COMMANDS["plot"].sentence)
    told = capsys.readouterr().out
    assert told.rstrip().endswith(examples("plot")[-1])
    assert "  # learning curves, compared\n  python -m mpi_parallel.plot runs/first runs/second" in told


def completed(script, *words):
    """What bash offers for the last of these words."""
    code = (
        f"source {script}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        '_shtab_mpi_parallel; echo "${COMPREPLY[@]}"'
    )
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_bash_completes_verbs_options_and_choices(tmp_path, capsys):
    assert completion.main(["bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    assert set(completed(script, "mpi-parallel", "")) >= set(VERBS)
    assert completed(script, "mpi-parallel", "train", "--target") == ["--target-accuracy"]
    assert "1f1b" in completed(script, "mpi-parallel", "train", "--pipe-schedule", "")
    assert "--picture" in completed(script, "mpi-parallel", "plot", "--p")
    assert completed(script, "mpi-parallel", "benchmark", "sc") == ["scaling"]


@pytest.mark.parametrize(
    "words",
    [
        "evaluate --checkpoint", "predict --checkpoint", "export --checkpoint", "predict --to", "convert --to",
        "repack --to", "convert", "convert --test", "train --resume", "train --out", "doctor --folder",
    ],
)  # fmt: skip
def test_bash_completes_files(tmp_path, capsys, words):
    assert completion.main(["bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    assert completed(script, "mpi-parallel", *words.split(), f"{tmp_path}/comp") == [str(script)]


def test_zsh_has_a_script_too(capsys):
    assert completion.main(["zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef mpi-parallel")


@pytest.mark.parametrize("arguments", [[], ["fish"], ["bash", "zsh"]])
def test_a_shell_that_is_not_known(arguments):
    with pytest.raises(InputError, match=r"for which shell\? Choose from: bash, zsh, tcsh"):
        completion.main(arguments)


def test_without_shtab_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(InputError, match=r"pip install 'mpi_parallel\[completion\]'"):
        completion.main(["bash"])


def test_alone_it_lists_all_verbs():
    told = subprocess.run([sys.executable, "-m", "mpi_parallel"], capture_output=True, text=True, check=True).stdout
    for verb in (*VERBS, "completion"):
        assert re.search(rf"^  {verb} +[A-Z]", told, re.MULTILINE)
