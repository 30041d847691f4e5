"""What gpu_check.py keeps of a machine and shows of its parts: one file for programs, one table for people."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VERSIONS = ("numpy", "mpi4py", "h5py", "cupy", "cupy-cuda12x", "cupy-cuda13x", "torch", "jax", "mpi_parallel")
HEAD = "| part | result | us a step | samples/s | of the matrix rate | seconds |"


def hardware() -> dict[str, Any]:
    """The GPU as its driver tells, and the CPU."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    told = {"cpu": cpu[1] if cpu else platform.processor(), "cores": len(os.sched_getaffinity(0)), "gpus": []}
    if tool := shutil.which("nvidia-smi"):
        query = "--query-gpu=name,memory.total,driver_version,clocks.max.sm,power.limit"
        done = subprocess.run([tool, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=30)
        told["gpus"] = done.stdout.strip().splitlines()
    return told


def versions(*pythons: str) -> dict[str, str]:
    """Of what takes part, as these pythons have it; the first one's count."""
    code = (
        "import importlib.metadata as m, json, sys\nfound = {'python': sys.version.split()[0]}\n"
        f"for n in {VERSIONS!r}:\n try: found[n] = m.version(n)\n except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    told: dict[str, str] = {}
    for python in pythons:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        told = json.loads(done.stdout or "{}") | told
    return told


def write(found: dict[str, Any], folder: Path, prefix: str = "") -> None:
    """Both files, DATE-GPU-gpu-check.json and .md."""
    gpus = found["hardware"]["gpus"]
    gpu = re.sub("[^a-z0-9]+", "-", gpus[0].split(",")[0].lower()).strip("-") if gpus else "no-gpu"
    stem = f"{found['date']}-{prefix}{gpu}-gpu-check"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(table(found))


def table(found: dict[str, Any]) -> str:
    """For people."""
    machine, told = found["hardware"], found["versions"]
    rows = [f"# gpu-check, {found['date']}", "", f"- GPU: {'; '.join(machine['gpus']) or 'none'}"]
    rows += [f"- CPU: {machine['cpu']}, {machine['cores']} cores"]
    rows += [f"- Versions: {', '.join(f'{name} {version}' for name, version in told.items())}", "", HEAD]
    rows += [re.sub("[^|]+", " --- ", HEAD)]
    for name, part in found["parts"].items():
        for label, result, figures in results(name, part):
            rows.append(f"| {' | '.join([label, result, *numbers(figures), format(part['seconds'], '.0f')])} |")
    return "\n".join(rows) + "\n"


def results(name: str, part: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What a part has for the table: a line, or one for each way of a peer or precision of parity."""
    figures, status = part.get("figures"), part["status"] + (f": {part['why']}" if part.get("why") else "")
    if isinstance(figures, list):
        for each in figures:
            label = each.get("way") or each.get("precision")
            fine = each.get("error") or ("done" if each.get("agrees", True) else "DIFFERS")
            apart = f", {each['apart']:.1e} apart of {each['allowed'][1]:.1e} allowed" if "apart" in each else ""
            yield f"{name}: {label}", fine.splitlines()[0][:100] + apart, each
    if not (isinstance(figures, list) and figures and part["status"] == "done"):
        said = f" ({figures})" if isinstance(figures, str) and figures else ""
        yield name, status + said, figures if isinstance(figures, dict) else {}


def numbers(figures: dict[str, Any]) -> list[str]:
    """Microseconds, samples a second and the share of the matrix rate, where there are any."""
    step, samples = figures.get("step_seconds"), figures.get("samples_per_second")
    rate, whole = figures.get("step_gflops"), figures.get("matmul_gflops")
    share = f"{rate / whole:.0%} of {whole / 1000:.3g} TFLOP/s" if rate and whole else ""
    return [f"{1e6 * step:.1f}" if step else "", f"{samples:,.0f}" if samples else "", share]
