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

VERSIONS = (
    "numpy", "mpi4py", "h5py", "cupy", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cublas", "nvidia-cublas-cu12",
    "nvidia-nccl-cu12", "nvidia-nccl-cu13", "torch", "jax", "mpi_parallel",
)  # fmt: skip
# Network, batch and precision: microseconds of a step, how many times as fast as PyTorch, share of the rate of a large
# product in the same run; each where there is a target.
TARGETS = (
    ("784-128-64-10 256 float32", 35, 1.5, None),
    ("784-128-64-10 4096 float32", 60, None, None),
    ("3072-4096-4096-4096-1000 8192 bfloat16", None, 1.0, 0.75),
)
HEAD = "| part | result | us a step | samples/s | of the matrix rate | seconds |"


def hardware() -> dict[str, Any]:
    """The GPU as its driver tells, and the CPU."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    told = {"cpu": cpu[1] if cpu else platform.processor(), "cores": len(os.sched_getaffinity(0)), "gpus": []}
    if tool := shutil.which("nvidia-smi"):
        query = "--query-gpu=name,memory.total,driver_version,clocks.max.sm,power.limit"
        told["gpus"] = said([tool, query, "--format=csv,noheader"]).strip().splitlines()
    return told


def said(command: list[str]) -> str:
    """What a program prints; nothing where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def versions(*pythons: str) -> dict[str, str]:
    """Of what takes part, as these pythons have it; the first one's count."""
    code = (
        "import importlib.metadata as m, json, sys\nfound = {'python': sys.version.split()[0]}\n"
        f"for n in {VERSIONS!r}:\n try: found[n] = m.version(n)\n except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    told: dict[str, str] = {}
    for python in pythons:
        told = json.loads(said([python, "-c", code]) or "{}") | told
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
    rows += ["", "| target | found | |", "| --- | --- | --- |"] if found.get("targets") else []
    rows += [f"| {what} | {value} | {'reached' if fine else 'missed'} |" for what, value, fine in found["targets"]]
    return "\n".join(rows) + "\n"


def targets(parts: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """What an H200 class GPU is to reach, what was found, and whether it did; of what was measured."""
    steps = {name: part["figures"] for name, part in parts.items() if isinstance(part.get("figures"), dict)}
    torch = [each for name, part in parts.items() if name.startswith("torch") for each in part.get("figures") or []]
    told: list[tuple[str, str, bool]] = []
    for shape, most, faster, share in TARGETS:
        ours = steps.get(f"ours, {shape}", {})
        if not ours.get("step_seconds"):
            continue
        seconds = ours["step_seconds"]
        if most:
            told.append((f"{shape}: at most {most} us a step", f"{1e6 * seconds:.1f} us", 1e6 * seconds <= most))
        times = [each["step_seconds"] for each in torch if each["shape"] == shape and each.get("step_seconds")]
        if faster and times:
            ratio = min(times) / seconds
            told.append((f"{shape}: {faster} times the best PyTorch", f"{ratio:.2f} times", ratio >= faster))
        if share:
            found = ours["step_gflops"] / ours["matmul_gflops"]
            told.append((f"{shape}: {share:.0%} of the matrix rate", f"{found:.0%}", found >= share))
    return told


def results(name: str, part: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What a part has for the table: a line, or one for each way of a peer or precision of parity."""
    figures, status = part.get("figures"), part["status"] + (f": {part['why']}" if part.get("why") else "")
    if isinstance(figures, list):
        for each in figures:
            label = ", ".join(filter(None, [each.get("shape"), each.get("way") or each.get("precision")]))
            fine = each.get("error") or ("done" if each.get("agrees", True) else "DIFFERS")
            apart = f", {each['apart']:.1e} apart of {each['allowed'][1]:.1e} allowed" if "apart" in each else ""
            yield f"{name}: {label}", (fine.splitlines() or ["error"])[0][:100] + apart, each
    if not (isinstance(figures, list) and figures and part["status"] == "done"):
        said = f" ({figures})" if isinstance(figures, str) and figures else ""
        figures = figures if isinstance(figures, dict) else {}
        yield name, status + said + ", all layers at once" * bool(figures.get("at_once")), figures


def numbers(figures: dict[str, Any]) -> list[str]:
    """Microseconds, samples a second and the share of the matrix rate, where there are any."""
    step, samples = figures.get("step_seconds"), figures.get("samples_per_second")
    rate, whole = figures.get("step_gflops"), figures.get("matmul_gflops")
    share = f"{rate / whole:.0%} of {whole / 1000:.3g} TFLOP/s" if rate and whole else ""
    return [f"{1e6 * step:.1f}" if step else "", f"{samples:,.0f}" if samples else "", share]
