"""All that is to be checked and measured on a machine with a GPU, by one command: `make gpu-check`.

    python benchmarks/gpu_check.py [--device cpu --tiny] [--to benchmarks/results] [--minutes 7.7] [--python PYTHON]

Each part is a process with a deadline of its own; one that fails or is late is told, and the others go on. What was
found goes to one JSON file and one Markdown table, rewritten after every part, so that nothing is lost with the rest.
The status is 0 only where every part did what it should. `--device cpu --tiny` runs the same parts, but for those that
need a GPU, at sizes that prove nothing: to try this program. The peers run in --python (this one unless told).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_parts import ROOT, Part, has, json_lines, mpirun, run, summary, without_ours
from gpu_table import hardware, targets, versions, write

PEERS = ROOT / "mpi_parallel" / "benchmark"
DEFAULT = {"features": 784, "hidden": [128, 64], "classes": 10}
WIDE = {"features": 3072, "hidden": [4096, 4096, 4096], "classes": 1000}
SHAPES = [
    (DEFAULT, 256, "float32"), (DEFAULT, 4096, "float32"), (WIDE, 8192, "bfloat16"), (WIDE, 8192, "tf32"),
    (WIDE, 1024, "bfloat16"), (WIDE, 1024, "tf32"),
]  # fmt: skip
SHARING = ("augmented_", "column_sums_", "cross_entropy_", "squares", "small_")  # our kernels with shared memory
SMALL = {"features": 20, "hidden": [9, 7], "classes": 3}
Shape = tuple[dict[str, Any], int, str]


def main() -> int:
    parser = argparse.ArgumentParser(description="Check and measure this machine's GPU.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="sizes at which nothing is measured, to try this program")
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--minutes", type=float, default=7.7, help="what is not done by then is told as late")
    parser.add_argument("--python", default=sys.executable, help="python that has PyTorch or JAX")
    options = parser.parse_args()
    began = float(os.environ.get("GPU_CHECK_BEGAN", time.time()))  # what was installed before counts, too
    ends = time.monotonic() + 60 * options.minutes - max(0.0, time.time() - began)
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware()}
    found["versions"] = versions(sys.executable, options.python)
    parts: list[Part] = []
    for part in all_parts(options):
        parts.append(part)
        run(part, ends)
        told = part.told
        print(f"{part.name:45} {told['status']:9} {told['seconds']:6.1f} s  {told.get('why', '')}", flush=True)
        found["parts"] = {part.name: part.told for part in parts}
        found["targets"] = targets(found["parts"])
        try:
            write(found, options.to, "tiny-" if options.tiny else "")
        except OSError as error:  # it may be written after the next part, and all is told here
            print(f"gpu-check: {options.to}: {error}", flush=True)
    for what, value, fine in found["targets"]:
        print(f"target: {what}: {value}, {'reached' if fine else 'MISSED'}")
    failed = [part.name for part in parts if part.told["status"] not in ("done", "left out")]
    summary = f"{len(failed)} of {len(parts)} parts failed: {', '.join(failed)}" if failed else "all is well"
    print(f"gpu-check: {summary}, in {(time.time() - began) / 60:.1f} minutes")
    return int(bool(failed))


def all_parts(options: argparse.Namespace) -> Iterator[Part]:
    """What is right before what is fast, ours before the peers', and last what takes long, as time may run out."""
    parity = [sys.executable, "benchmarks/parity.py", "--device", options.device, "--steps"]
    no_gpu = "needs a GPU" if options.device == "cpu" else None
    yield Part("parity with the CPU", [*parity, "6" if options.tiny else "20"], 60, json_lines)
    yield tests("tests marked gpu", [sys.executable], "gpu", 90, no_gpu)
    for ranks in (2, 4):
        command, which = [mpirun(), "-n", str(ranks), sys.executable], "gpu and parallel[match]"
        yield tests(f"tests marked gpu, {ranks} ranks", command, which, 40, no_gpu)
    shapes = [(SMALL, 8, "bfloat16")] if options.tiny else SHAPES
    for shape in shapes:
        yield ours(f"ours, {named(*shape)}", shape, options)
        if shape[0] is DEFAULT:  # where launches are what takes time
            yield ours(f"ours without graphs, {named(*shape)}", shape, options, more=["--no-graphs"])
    yield peer("torch", shapes, ["eager", "graph"] if options.device == "cuda" else ["eager"], 80, options)
    for ranks in (2,) if options.tiny else (2, 4):
        yield ours(f"ours, {ranks} ranks on one GPU, {named(*shapes[0])}", shapes[0], options, ranks)
    yield sanitized("memcheck", parity, no_gpu)
    others = [shape for shape in shapes if shape[2] != "tf32"]
    yield peer("jax", others, ["scan"], 80, options)
    yield sanitized("racecheck", parity, no_gpu)
    if options.device == "cuda":
        yield peer("torch", others, ["compile", "compile-graph"], 120, options)
        tf32 = [shape for shape in shapes if shape[2] == "tf32"]  # products that PyTorch's eager steps have shown
        yield replace(peer("torch", tf32, ["compile"], 40, options), name="torch compile, tf32", spare=True)
        yield replace(peer("jax", tf32, ["scan"], 30, options), name="jax scan, tf32", spare=True)


def tests(name: str, python: list[str], which: str, seconds: float, needs: str | None) -> Part:
    """pytest, on files with such tests alone: others import what is not needed here, and may not be there.

    A warning of a CuPy that we have not met is no failure.
    """
    quiet = ["-q", "--color=no", "-W", "default", "-p", "no:cacheprovider"]
    return Part(name, [*python, "-m", "pytest", *quiet, "-m", which, *map(str, gpu_tests())], seconds, summary, needs)


def gpu_tests() -> list[Path]:
    """The files that have tests for a GPU: marked so, or by a fixture that is (tests/device/conftest.py)."""
    has_some = re.compile(r"pytest\.mark\.gpu|def test_\w+\(kernels\b")
    return sorted(path for path in (ROOT / "tests").rglob("test_*.py") if has_some.search(path.read_text()))


def sanitized(check: str, parity: list[str], needs: str | None) -> Part:
    """compute-sanitizer on some captured training steps; each kernel runs many times slower."""
    tool = sanitizer()
    missing = None if tool else "there is no compute-sanitizer on PATH or in /usr/local/cuda*/bin"
    # What it does not know of a newer CUDA it takes for errors of calls; in NVIDIA's products it sees races of theirs.
    only = [word for name in SHARING if check == "racecheck" for word in ("--kernel-name", f"kns={name}")]
    how = ["--tool", check, "--report-api-errors", "no", *only, "--error-exitcode", "9"]
    command = [str(tool), *how, *parity, "3", "--ways", "float16", "at-once"]
    return Part(f"compute-sanitizer {check}", command, 60, summary, needs or missing)


def peer(name: str, shapes: list[Shape], ways: list[str], seconds: float, options: argparse.Namespace) -> Part:
    """The same steps by a peer: all shapes in one process, as it takes long to start."""
    given: dict[str, Any] = {"ways": ways, "device": options.device, "seconds": 0.2 if options.tiny else 1}
    given["shapes"] = [
        {"name": named(*shape), **shape[0], "batch_size": shape[1], "precision": shape[2]} for shape in shapes
    ]
    command = [options.python, str(PEERS / f"peer_{name}_step.py"), json.dumps(given)]
    needs = None if has(options.python, name) else f"{options.python} has no {name}"
    environment = without_ours() | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return Part(f"{name} {', '.join(ways)}", command, seconds, json_lines, needs, environment)


def named(network: dict[str, Any], batch: int, precision: str) -> str:
    """784-128-64-10 256 float32."""
    widths = network["features"], *network["hidden"], network["classes"]
    return f"{'-'.join(map(str, widths))} {batch} {precision}"


def ours(
    name: str, shape: Shape, options: argparse.Namespace, ranks: int = 1, more: list[str] | None = None
) -> Part:  # fmt: skip
    """`benchmark step` as a user calls it; several ranks see one GPU alone."""
    network, batch, precision = shape
    figures = Path(tempfile.mkdtemp()) / "figures.json"
    command = [sys.executable, "-m", "mpi_parallel.benchmark", "step", "--device", options.device, "--to", str(figures)]
    command += ["--features", str(network["features"]), "--hidden", *map(str, network["hidden"])]
    command += ["--classes", str(network["classes"]), "--batch-size", str(batch), "--precision", precision]
    command += ["--seconds", "0.2" if options.tiny else "1", *(more or [])]
    environment: dict[str, str | None] = {}
    if ranks > 1:
        command = [mpirun(), "-n", str(ranks), *command]
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

    def read(_: str) -> Any:
        try:
            return json.loads(figures.read_text())
        finally:
            shutil.rmtree(figures.parent)

    return Part(name, command, 45, read, None, environment)


def sanitizer() -> str | None:
    """Where compute-sanitizer is."""
    beside = sorted(map(str, Path("/usr/local").glob("cuda*/bin/compute-sanitizer")))
    return shutil.which("compute-sanitizer") or (beside[-1] if beside else None)


if __name__ == "__main__":
    sys.exit(main())
