"""All that is to be checked and measured on a machine with a GPU, by one command: `make gpu-check`.

    python benchmarks/gpu_check.py [--device cpu --tiny] [--to benchmarks/results] [--minutes 8] [--python PYTHON]

Each part is a process with a deadline of its own; one that fails or is late is told, and the others go on. What was
found goes to one JSON file and one Markdown table, rewritten after every part, so that nothing is lost with the rest.
The status is 0 only where every part did what it should. `--device cpu --tiny` runs the same parts, but for those that
need a GPU, at sizes that prove nothing: to try this program. The peers run in --python (this one unless told).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_table import hardware, versions, write

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "mpi_parallel" / "benchmark"
DEFAULT = {"features": 784, "hidden": [128, 64], "classes": 10}
WIDE = {"features": 3072, "hidden": [4096, 4096, 4096], "classes": 1000}
SHAPES = [
    (DEFAULT, 256, "float32"), (DEFAULT, 4096, "float32"), (WIDE, 8192, "bfloat16"), (WIDE, 8192, "tf32"),
    (WIDE, 1024, "bfloat16"), (WIDE, 1024, "tf32"),
]  # fmt: skip
SMALL = {"features": 20, "hidden": [9, 7], "classes": 3}


@dataclass
class Part:
    """What is run, for at most so many seconds, and what is made of its output."""

    name: str
    command: list[str]
    seconds: float
    read: Callable[[str], Any] = lambda _: None
    needs: str | None = None  # why it is left out; None: it runs
    told: dict[str, Any] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check and measure this machine's GPU.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="sizes at which nothing is measured, to try this program")
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--minutes", type=float, default=7.7, help="no part begins that would end later")
    parser.add_argument("--python", default=sys.executable, help="python that has PyTorch or JAX")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "versions": versions(options.python),
    }
    ends = time.monotonic() + 60 * options.minutes
    parts: list[Part] = []
    for part in all_parts(options):
        parts.append(part)
        run(part, ends)
        print(
            f"{part.name:45} {part.told['status']:9} {part.told['seconds']:6.1f} s  {part.told.get('why', '')}",
            flush=True,
        )
        found["parts"] = {part.name: part.told for part in parts}
        write(found, options.to, "tiny-" if options.tiny else "")
    failed = [part.name for part in parts if part.told["status"] not in ("done", "left out")]
    print(
        f"gpu-check: {len(failed)} of {len(parts)} parts failed: {', '.join(failed)}"
        if failed
        else "gpu-check: all is well"
    )
    return int(bool(failed))


def all_parts(options: argparse.Namespace) -> Iterator[Part]:
    """What is right before what is fast, ours before the peers', as time may run out."""
    parity = [sys.executable, "benchmarks/parity.py", "--device", options.device, "--steps"]
    no_gpu = "needs a GPU" if options.device == "cpu" else None
    yield Part("parity with the CPU", [*parity, "6" if options.tiny else "20"], 60, json_lines)
    tests = [sys.executable, "-m", "pytest", "-q", "--color=no", "-m", "gpu", "tests"]
    yield Part("tests marked gpu", tests, 100, last_line, no_gpu)
    for ranks in (2, 4):
        of_ranks = [*tests[:-3], "-m", "gpu and parallel[match]", "tests/result_merging"]
        command = [mpirun(), "-n", str(ranks), *of_ranks]
        yield Part(f"tests marked gpu, {ranks} ranks", command, 40, last_line, no_gpu)
    shapes = [(SMALL, 8, "bfloat16")] if options.tiny else SHAPES
    for shape in shapes:
        yield ours(f"ours, {named(*shape)}", *shape, options)
        if shape[0] is DEFAULT:  # where launches are what takes time
            yield ours(f"ours without graphs, {named(*shape)}", *shape, options, more=["--no-graphs"])
    for ranks in (2,) if options.tiny else (2, 4):
        yield ours(f"ours, {ranks} ranks on one GPU, {named(*shapes[0])}", *shapes[0], options, ranks)
    tool = sanitizer()
    missing = no_gpu or (None if tool else "there is no compute-sanitizer on PATH or in /usr/local/cuda*/bin")
    for check in ("memcheck", "racecheck"):
        command = [str(tool), "--tool", check, "--error-exitcode", "9", *parity, "3", "--precisions", "float16"]
        yield Part(f"compute-sanitizer {check}", command, 60, last_line, missing)
    for shape in shapes:
        yield peer("torch", 75, shape, options)
        if shape[2] != "tf32":
            yield peer("jax", 45, shape, options)


def peer(name: str, seconds: float, shape: tuple[dict[str, Any], int, str], options: argparse.Namespace) -> Part:
    """The same step by a peer, in all the ways that its program has."""
    network, batch, precision = shape
    given = {**network, "batch_size": batch, "precision": precision, "device": options.device}
    given["ways"] = ["eager", "graph", "compile"] if options.device == "cuda" else ["eager"]
    given["seconds"] = 0.2 if options.tiny else 2
    command = [options.python, str(PEERS / f"peer_{name}_step.py"), json.dumps(given)]
    absent = subprocess.run([options.python, "-c", f"import {name}"], capture_output=True, cwd="/").returncode
    needs = f"{options.python} has no {name}" if absent else None
    return Part(f"{name}, {named(*shape)}", command, seconds, json_lines, needs)


def named(network: dict[str, Any], batch: int, precision: str) -> str:
    """784-128-64-10 256 float32."""
    widths = network["features"], *network["hidden"], network["classes"]
    return f"{'-'.join(map(str, widths))} {batch} {precision}"


def ours(
    name: str, network: dict[str, Any], batch: int, precision: str, options: argparse.Namespace, ranks: int = 1,
    more: list[str] | None = None,
) -> Part:  # fmt: skip
    """`benchmark step` as a user calls it."""
    figures = Path(tempfile.mkdtemp()) / "figures.json"
    command = [sys.executable, "-m", "mpi_parallel.benchmark", "step", "--device", options.device, "--to", str(figures)]
    command += ["--features", str(network["features"]), "--hidden", *map(str, network["hidden"])]
    command += ["--classes", str(network["classes"]), "--batch-size", str(batch), "--precision", precision]
    command += ["--seconds", "0.2" if options.tiny else "2", *(more or [])]
    if ranks > 1:
        command = [mpirun(), "-n", str(ranks), *command]

    def read(_: str) -> Any:
        told = json.loads(figures.read_text())
        shutil.rmtree(figures.parent)
        return told

    return Part(name, command, 60, read)


def run(part: Part, ends: float) -> None:
    """Run the part, whatever happens, and note what came of it."""
    left = ends - time.monotonic()
    if part.needs or left < 5:
        part.told = {
            "status": "left out" if part.needs else "late",
            "seconds": 0.0,
            "why": part.needs or "no time was left",
        }
        return
    began = time.monotonic()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    process = subprocess.Popen(
        part.command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=min(part.seconds, left))
        status, why = ("done", "") if process.returncode == 0 else ("failed", f"status {process.returncode}")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with all that it has started
        output, _ = process.communicate()
        status, why = "late", f"more than {min(part.seconds, left):.0f} s"
    part.told = {"status": status, "seconds": time.monotonic() - began}
    try:
        part.told["figures"] = part.read(output)
    except (ValueError, OSError) as error:
        status, why = ("failed", f"its output is not what it should be: {error}") if status == "done" else (status, why)
    if status != "done":
        part.told |= {"status": status, "why": why, "output": output[-3000:]}


def json_lines(output: str) -> list[Any]:
    """The lines of JSON in it."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def last_line(output: str) -> str:
    """The last line."""
    return (output.strip().splitlines() or [""])[-1]


def sanitizer() -> str | None:
    """Where compute-sanitizer is."""
    beside = sorted(map(str, Path("/usr/local").glob("cuda*/bin/compute-sanitizer")))
    return shutil.which("compute-sanitizer") or (beside[-1] if beside else None)


def mpirun() -> str:
    """The one beside this python, which knows what MPI wants on one machine, else the one on PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun") or "mpirun"


if __name__ == "__main__":
    sys.exit(main())
