"""What this Python lacks to run gpu_check.py, installed into a folder of its own: `jobs/gpu-check` calls this.

    python benchmarks/gpu_wheels.py FOLDER CUPY [WHEELS]

CUPY is the CuPy that fits the driver, `none` where none is wanted; WHEELS a folder of wheels, for machines without a
network. Only what is missing is installed: what pip takes along on its own would hide the NumPy, mpi4py and CuPy that
this machine has, which fit its MPI and its driver. What cannot be had is told; the parts that need it will fail.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence

MODULES = {
    "numpy": "numpy", "mpi4py": "mpi4py", "h5py": "h5py", "threadpoolctl": "threadpoolctl", "tqdm": "tqdm",
    "tomli_w": "tomli-w", "pytest": "pytest", "pytest_mpi": "mpi-pytest", "pytest_timeout": "pytest-timeout",
    "hypothesis": "hypothesis", "setuptools": "setuptools",
}  # fmt: skip


def main(folder: str, cupy: str, wheels: str = "") -> int:
    sys.path.insert(0, folder)
    modules = MODULES | ({} if cupy == "none" else {"cupy": cupy})
    wanted = [name for module, name in modules.items() if importlib.util.find_spec(module) is None]
    if not wanted:
        return 0
    print(f"gpu-check: installing into {folder}: {' '.join(wanted)}", flush=True)
    where = ["--no-index", "--find-links", wheels] if wheels else []
    tried: set[str] = set()
    while wanted:
        tried |= set(wanted)
        if not install(folder, wanted, where):  # perhaps it is one of them alone that is nowhere
            for name in wanted if len(wanted) > 1 else []:
                install(folder, [name], where)
        importlib.invalidate_caches()
        wanted = sorted({needed for name in tried for needed in needs(name)} - tried)
    lacking = [name for name in sorted(tried) if version(plain(name)) is None]
    if lacking:
        print(f"gpu-check: not to be had: {', '.join(lacking)}; what needs them will fail", flush=True)
    return 0


def install(folder: str, names: Sequence[str], where: Sequence[str]) -> bool:
    """Have pip install these, and nothing that they need."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--target", folder, *where, *(plain(name, keep=True) for name in names)]
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
