"""Prove on this machine that results do not depend on the ranks: `python -m mpi_parallel.verify --ranks 1,2,3,4`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi_parallel.mpi.launcher import child_environment, mpirun_beside
from mpi_parallel.options import InputError, at_least, option, parse

SENTENCE = "Train a few steps with --reproducible on each number of ranks and compare the weights, bit for bit."


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """what is run"""

    ranks: str = option("1,2,3,4", "numbers of ranks, with commas", name="N,N,…")
    launcher: str = option("", "command that starts {ranks} ranks; by default mpirun -n {ranks}", name="COMMAND")
    data: str | None = option(None, "train on this file; by default on one made for it", name="FILE.h5")
    steps: int = option(40, "steps of each run", check=at_least(1))
    options: str = option("", "further options of train, such as '--optimizer adamw --dropout 0.1'", name="TEXT")
    timeout: int = option(300, "seconds that one run may take", check=at_least(1), name="SECONDS")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """All options of `verify`."""

    verify: VerifyOptions


def main(arguments: list[str]) -> int:
    """Run them all; 0 when all weights agree, 1 when they differ."""
    options = parse(VerifyConfig, arguments, "mpi_parallel.verify", SENTENCE).verify
    counts = _counts(options.ranks)
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or _make_data(Path(folder) / "data.h5")
        ends = {ranks: _run(options, ranks, data, Path(folder) / f"run-{ranks}") for ranks in counts}
    print("ranks  test loss    accuracy  sha256 of the weights")
    for ranks, end in ends.items():
        print(f"{ranks:5}  {end['test_loss']:.8f}  {end['test_accuracy']:.5f}   {end['weights_sha256']}")
    same = len({(end["weights_sha256"], end["test_loss"]) for end in ends.values()}) == 1
    print("the same weights, bit for bit" if same else "THE WEIGHTS DIFFER")
    return 0 if same else 1


def _counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise InputError(f"--ranks {text}: expected numbers of ranks with commas, such as 1,2,3,4")
    return counts


def _run(options: VerifyOptions, ranks: int, data: str, out: Path) -> dict[str, Any]:
    """The end event of one run. Raises InputError with what it said when it failed."""
    train = f"{sys.executable} -m mpi_parallel.train --data {data} --out {out} --steps {options.steps}"
    fixed = "--reproducible --progress none"
    launcher = (options.launcher or f"{mpirun_beside()} -n {{ranks}}").format(ranks=ranks)
    command = shlex.split(f"{launcher} {train} {fixed} {options.options}")
    try:
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=options.timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{shlex.join(command)}: {error}") from None
    if done.returncode:
        raise InputError(f"{shlex.join(command)} left with {done.returncode}:\n{done.stdout}{done.stderr}")
    end: dict[str, Any] = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return end


def _make_data(path: Path) -> str:
    """3,001 images in ten noisy classes: shards of unequal rows, a short last batch."""
    import h5py  # here, because whoever only asks for --help needs none of it
    import numpy as np

    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        centres = random.normal(size=(10, 16, 16))
        for name, rows in (("train", 3001), ("test", 501)):
            labels = random.integers(0, 10, rows)
            images = np.clip(128 + 40 * (centres[labels] + 2 * random.normal(size=(rows, 16, 16))), 0, 255)
            file[f"{name}/images"], file[f"{name}/labels"] = images.astype(np.uint8), labels
    return str(path)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
