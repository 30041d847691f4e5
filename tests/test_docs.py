"""The pages of docs/: what they show is run as it stands there."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from mpi_parallel.commands import COMMANDS
from mpi_parallel.options.command_line import parse
from tests.docs import DOCS, blocks
from tests.launch import launch
from tests.once import once

ROOT = DOCS.parent


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_code_of_the_page_on_extending(tmp_path, ranks):
    program = tmp_path / "extended.py"
    program.write_text("\n\n".join(code for language, code in blocks("extending.md") if language == "python"))
    ended = launch(ranks, program)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"{ranks} ranks, loss 0.0")


@once
def test_the_tutorial_from_its_first_line_to_its_last(tmp_path):
    """As a notebook runs it: all Python in one program, commands by bash in between."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    program = ["import os, subprocess", "clean = dict(os.environ)  # what MPI puts into it is not for other jobs"]
    for language, code in blocks("tutorial.md"):
        shell = f"subprocess.run(['bash', '-euo', 'pipefail', '-c', {code!r}], env=clean, check=True)"
        program.append(code if language == "python" else shell)
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    (tmp_path / "tutorial.py").write_text("\n".join(program))
    ended = launch(None, "tutorial.py", deadline=110, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@once
@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.stem)
def test_commands_can_be_typed(page):
    """The options of every command line on a page are those of the command."""
    for verb, rest in re.findall(
        r"python -m mpi_parallel\.([a-z]+)((?: [^`\n]*)?)", page.read_text("utf-8").replace("\\\n", "")
    ):
        words = shlex.split(re.split(r" #|   | [|>]|&&|[;)]", rest.replace("'", "").replace("…", ""))[0])
        name = f"{verb} {words.pop(0)}" if verb == "benchmark" and words else verb
        if name != "benchmark" and "--help" not in words:
            parse(COMMANDS[name].kind, words if "--config" not in words else ["--data", "train.h5"], name, "")


def test_every_page_has_a_title_and_no_stray_fence():
    for page in DOCS.glob("*.md"):
        text = page.read_text("utf-8")
        assert text.startswith("# "), page
        assert text.count("\n```") % 2 == 0, page
