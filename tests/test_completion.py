"""Completion in bash and zsh: what the shells themselves make of the scripts."""

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from mpi_parallel import completion
from mpi_parallel.commands import VERBS
from mpi_parallel.options import InputError
from tests.once import once

pytestmark = once

ZSH = shutil.which("zsh")


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


# What is typed is answered in a file: what zsh shows depends on how fast one types.
SETTING = """
fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; bindkey '^I' complete-word
tell() {{ print -r -- "$BUFFER" >> {told}; BUFFER= }}; zle -N tell; bindkey '^T' tell
"""


@pytest.mark.skipif(ZSH is None, reason="there is no zsh on this machine")
def test_zsh_completes_verbs_options_choices_and_files(tmp_path, capsys):
    assert completion.main(["zsh"]) == 0
    (tmp_path / "_mpi-parallel").write_text(capsys.readouterr().out)
    told, words = tmp_path / "told", {
        "tr": "train ",
        "train --pipe-sch": "train --pipe-schedule ",
        "train --optimizer la": "train --optimizer lamb ",
        "train --no-repor": "train --no-report ",
        "benchmark sc": "benchmark scaling ",
        "completion zs": "completion zsh ",
        f"predict --to {tmp_path}/_mpi": f"predict --to {tmp_path}/_mpi-parallel ",
        **{f"{verb} --conf": f"{verb} --config " for verb in VERBS if verb != "benchmark"},
    }  # fmt: skip
    typed = SETTING.format(folder=tmp_path, told=told) + "".join(f"mpi-parallel {one}\t\x14" for one in words)
    shown = on_a_terminal([ZSH, "-f", "-i"], typed + "exit\n")
    assert told.read_text().splitlines() == [f"mpi-parallel {one}" for one in words.values()], shown


def on_a_terminal(command: list[str], typed: str) -> str:
    """What a program shows of which all that is typed; it has to end by itself."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as program:
        os.close(theirs)
        shown, left = b"", typed.encode()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            readable, writable, _ = select.select([ours], [ours] if left else [], [], 1)
            try:
                shown += os.read(ours, 4096) if readable else b""
                left = left[os.write(ours, left[:64]) :] if writable else left
            except OSError:  # it has closed its end
                break
        program.kill()
    os.close(ours)
    return shown.decode(errors="replace")


@pytest.mark.parametrize("arguments", [[], ["fish"], ["bash", "zsh"]])
def test_a_shell_that_is_not_known(arguments):
    with pytest.raises(InputError, match=r"for which shell\? Choose from: bash, zsh, tcsh"):
        completion.main(arguments)


def test_without_shtab_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(InputError, match=r"pip install 'mpi_parallel\[completion\]'"):
        completion.main(["bash"])
