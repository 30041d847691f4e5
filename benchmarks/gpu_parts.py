"""A part of gpu_check.py: a process with a deadline, of which nothing is left when it is over, whatever happens."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARK = "GPU_CHECK_PART"  # in the environment of all that a part starts, also of ranks that mpirun has set apart
GRACE = 5.0  # seconds in which mpirun can end its ranks


@dataclass
class Part:
    """What is run, for at most so many seconds, and what is made of its output."""

    name: str
    command: list[str]
    seconds: float
    read: Callable[[str], Any] = lambda _: None
    needs: str | None = None  # why it is left out; None: it runs
    environment: dict[str, str | None] = field(default_factory=dict)  # what is different; None: without it
    spare: bool = False  # it is left out where not all of its seconds are left
    told: dict[str, Any] = field(default_factory=dict)


def run(part: Part, ends: float) -> None:
    """Run the part until `ends` at the latest, by time.monotonic, and note what came of it."""
    left = ends - time.monotonic()
    if part.needs or left < (part.seconds if part.spare else 5):
        part.told = {"status": "left out" if part.needs or part.spare else "late", "seconds": 0.0}
        part.told["why"] = part.needs or "no time was left"
        return
    began = time.monotonic()
    status, why, output = _taken(part, min(part.seconds, left))
    part.told = {"status": status, "seconds": time.monotonic() - began}
    try:
        figures = part.told["figures"] = part.read(output)
        errors = [each["error"] for each in figures if "error" in each] if isinstance(figures, list) else []
        if status == "done" and errors:
            status, why = "failed", f"{len(errors)} of {len(figures)}: {errors[0].splitlines()[0][:200]}"
    except Exception as error:  # of whatever kind: the other parts go on
        if status == "done":
            status, why = "failed", f"its output is not what it should be: {error!r}"
    if status != "done":
        part.told |= {"status": status, "why": why, "output": output[-3000:]}


def _taken(part: Part, seconds: float) -> tuple[str, str, str]:
    """Status, why it is none better, and output."""
    mark = uuid.uuid4().hex
    given = {**os.environ, "PYTHONPATH": _joined(str(ROOT), os.environ.get("PYTHONPATH")), MARK: mark}
    given = {name: value for name, value in (given | part.environment).items() if value is not None}
    try:
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        return "failed", f"it cannot be started: {error}", ""
    try:
        output, _ = process.communicate(timeout=seconds)
        status = "done", ""
        if process.returncode:
            status = "failed", f"status {process.returncode}"
    except subprocess.TimeoutExpired:
        status = "late", f"more than {seconds:.0f} s"
        with suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(GRACE)
        _end(mark)
        output = process.communicate()[0]
    _end(mark)
    return *status, output


def _end(mark: str) -> None:
    """Kill whatever has this mark, until it is gone: nothing of a part may share the GPU with the next one."""
    ends = time.monotonic() + GRACE
    while (left := list(_marked(mark))) and time.monotonic() < ends:
        for process in left:
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


def _marked(mark: str) -> Iterator[int]:
    """The processes that have it."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


def without_ours() -> dict[str, str | None]:
    """An environment for programs of another Python: our folder of wheels is not for it."""
    paths = (os.environ.get("PYTHONPATH") or "").split(os.pathsep)
    return {"PYTHONPATH": _joined(*(path for path in paths if Path(path).name != ".gpu-check")) or None}


def _joined(*paths: str | None) -> str:
    return os.pathsep.join(filter(None, paths))


def json_lines(output: str) -> list[Any]:
    """The lines of JSON in it; the last one may have been cut off."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines if line.endswith("}")]


def summary(output: str) -> str:
    """How pytest sums up; else the last line that says something."""
    lines = [line.strip() for line in output.splitlines() if re.search(r"\w", line)]
    return next((line for line in reversed(lines) if re.search(r" in [\d.]+s", line)), lines[-1] if lines else "")


def has(python: str, module: str) -> bool:
    """Whether this Python has it; that it works only its use can tell."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run([python, "-c", code], capture_output=True, cwd="/", timeout=30).returncode == 0
    return False


def mpirun() -> str:
    """The one beside this python, which knows what MPI wants on one machine, else the one on PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else "mpirun"
