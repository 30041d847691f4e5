"""Prove on this machine that results do not depend on the ranks: `python -m mpi_parallel.verify --ranks 1,2,3,4`.

Grids with the same number of tensor ranks, which cut layers alike, must give the same weights, bit for bit. Where
layers are cut in other ways the sums within a matrix product are taken in another order: losses agree to TOLERANCE.

Gradients are those of one step with all rows, plain, in which stages may share layers: of each grid they and the
weights behind them are held against those of one rank, and against a float64 network's (nn/plain.py).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mpi_parallel.config.learning import LARGEST_BATCH
from mpi_parallel.mpi.launcher import child_environment, mpirun_beside
from mpi_parallel.options import InputError, option
from mpi_parallel.options.command_line import parse, run_alone
from mpi_parallel.options.values import at_least

SENTENCE = "Train a few steps with --reproducible on every grid of each number of ranks and compare the results."
STEPS_OF_CUT_LAYERS = 4  # see _steps
TOLERANCE = 1e-5  # of the test loss, relative; float32 rounds to 6e-8 a number
LAYERS = "--hidden 48 40 36 32 28 24 20"  # enough for eight stages
GRADIENT_LAYERS = (96, 600, 40, 36, 32, 28, 24)  # also eight, and some that stages share
GRADIENT_TOLERANCE = 2e-5  # of the largest number in the array

Grid = tuple[int, int, int]  # data, pipe, tensor
Arrays = dict[str, Any]  # of float64, by name


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """what is run"""

    ranks: str = option("1,2,3,4", "numbers of ranks, with commas", name="N,N,…")
    layouts: str = option(
        "all",
        "which grids of the ranks: data puts the whole model on each, all takes every data x pipe x tensor",
        choices=("data", "all"),
    )
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
    """Run them all; 0 when all results agree, 1 when they differ."""
    options = parse(VerifyConfig, arguments, "mpi_parallel.verify", SENTENCE).verify
    grids = [grid for ranks in _counts(options.ranks) for grid in grids_of(ranks, options.layouts)]
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or _make_data(Path(folder) / "data.h5")
        print("ranks  data x pipe x tensor  test loss   accuracy  sha256 of the weights")
        ends = {grid: _told(options, grid, data, Path(folder) / f"run-{number}") for number, grid in enumerate(grids)}
        cut = any(tensor > 1 for _, _, tensor in grids)
        whole = _run(options, (1, 1, 1), data, Path(folder) / "run-whole", _steps(options, 2)) if cut else {}
        agreed = [_same_bits(ends), _close(ends, whole), _gradients_agree(options, grids, Path(folder))]
    return 0 if all(agreed) else 1


def grids_of(ranks: int, layouts: str) -> list[Grid]:
    """Every (data, pipe, tensor) that multiplies to the ranks; those of data alone where only these are asked for."""
    if layouts == "data":
        return [(ranks, 1, 1)]
    divisors = [n for n in range(1, ranks + 1) if ranks % n == 0]
    return [(ranks // (p * t), p, t) for t in divisors for p in divisors if ranks % (p * t) == 0]


def _same_bits(ends: Mapping[Grid, dict[str, Any]]) -> bool:
    """Whether grids that cut layers alike have the same weights and the same loss; told, too."""
    results = {(tensor, end["weights_sha256"], end["test_loss"]) for (_, _, tensor), end in ends.items()}
    cuts = {tensor for _, _, tensor in ends}
    alike = f" for each of {len(cuts)} ways to cut layers" if len(cuts) > 1 else ""
    print(f"the same weights, bit for bit{alike}" if len(results) == len(cuts) else "THE WEIGHTS DIFFER")
    return len(results) == len(cuts)


def _steps(options: VerifyOptions, tensor: int) -> int:
    """Steps of a run: few where layers are cut.

    Sooner or later the rounding of another order of sums carries some unit over the kink of its relu, and from then on
    two runs part.
    """
    return min(options.steps, STEPS_OF_CUT_LAYERS) if tensor > 1 else options.steps


def _close(ends: Mapping[Grid, dict[str, Any]], whole: Mapping[str, Any]) -> bool:
    """Whether the losses of grids with cut layers are within the tolerance of the whole layers'; told, too."""
    import numpy as np  # here, because whoever only asks for --help needs none of it

    apart = [abs(end["test_loss"] / whole["test_loss"] - 1) for (_, _, tensor), end in ends.items() if tensor > 1]
    far = float(np.max(apart, initial=0.0))  # NaN where one is NaN
    if apart:
        verdict = "agree" if far <= TOLERANCE else "DIFFER"
        print(f"with cut layers the losses {verdict}: {far:.1e} apart, {TOLERANCE:.0e} allowed")
    return far <= TOLERANCE


def _gradients_agree(options: VerifyOptions, grids: Sequence[Grid], folder: Path) -> bool:
    """Whether gradients and weights of one step are the same on every grid, and those of the plain network; told.

    Always of the file that is made for it, whose every row is in the step, whatever file the runs train on.
    """
    import numpy as np  # here, because whoever only asks for --help needs none of it

    data, found = _make_data(folder / "step.h5"), dict[Grid, Arrays]()
    for number, grid in enumerate(dict.fromkeys([(1, 1, 1), *grids])):
        found[grid] = _one_step(options, grid, data, folder / f"step-{number}")
    alone = found[1, 1, 1]
    verdicts = []
    for whose, arrays in {"one rank's": alone, "a float64 network's": _plain(data, alone)}.items():
        apart = [
            np.abs(ours[name] - theirs).max() / (np.abs(theirs).max() or 1.0)
            for ours in found.values()
            for name, theirs in arrays.items()
        ]
        far = float(np.max(apart))  # NaN where one is NaN
        verdicts.append(far <= GRADIENT_TOLERANCE)
        verdict = "agree with" if verdicts[-1] else "DIFFER from"
        print(f"gradients and weights of a step {verdict} {whose}: {far:.1e} apart, {GRADIENT_TOLERANCE:.0e} allowed")
    return all(verdicts)


def _one_step(options: VerifyOptions, grid: Grid, data: str, out: Path) -> Arrays:
    """Gradients, by names such as "v/W0", and weights, "W0", of a step with all rows: momentum starts from nothing,
    so its state is the gradient."""
    import h5py

    hidden = " ".join(map(str, GRADIENT_LAYERS))
    words = f"--optimizer momentum --checkpoint-every 1 --batch-size {LARGEST_BATCH} --hidden {hidden}"
    _launch(options, grid, data, out, 1, words)
    with h5py.File(out / "checkpoints" / "step-00000001.h5") as file:
        gradients = {f"v/{name}": array[...].astype(float) for name, array in file["optimizer/v"].items()}
        return gradients | {name: array[...].astype(float) for name, array in file["weights"].items()}


def _plain(data: str, alone: Arrays) -> Arrays:
    """The same from the file that `_make_data` wrote, by the plain network in float64."""
    import h5py
    import numpy as np

    from mpi_parallel.nn.mlp import glorot_uniform
    from mpi_parallel.nn.plain import mean_gradient

    with h5py.File(data) as file:
        images, labels = file["train/images"][...].reshape(len(file["train/labels"]), -1), file["train/labels"][...]
    x = (images - images.mean(axis=0)) / np.where(images.std(axis=0) == 0, 1, images.std(axis=0))
    depth = len(GRADIENT_LAYERS) + 1
    names = [f"{kind}{number}" for number in range(depth) for kind in "Wb"]
    shapes = [alone[name].shape for name in names]
    start = [
        glorot_uniform(shape[0], shape[1], 0, number // 2).astype(float) if len(shape) == 2 else np.zeros(shape)
        for number, shape in enumerate(shapes)
    ]
    gradients = mean_gradient(start, x, labels)
    weights = [w - 1e-3 * g for w, g in zip(start, gradients, strict=True)]
    return {f"v/{name}": g for name, g in zip(names, gradients, strict=True)} | dict(zip(names, weights, strict=True))


def _told(options: VerifyOptions, grid: Grid, data: str, out: Path) -> dict[str, Any]:
    """Run on this grid, and print its line."""
    end = _run(options, grid, data, out, _steps(options, grid[2]))
    shape = " x ".join(map(str, grid))
    print(
        f"{prod(grid):5}  {shape:20}  {end['test_loss']:.8f}  {end['test_accuracy']:.5f}   {end['weights_sha256']}",
        flush=True,
    )
    return end


def _counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise InputError(f"--ranks {text}: expected numbers of ranks with commas, such as 1,2,3,4")
    return counts


def _run(options: VerifyOptions, grid: Grid, data: str, out: Path, steps: int) -> dict[str, Any]:
    """The end event of one run. Raises InputError with what it said when it failed."""
    _launch(options, grid, data, out, steps, f"--reproducible --checkpoint-every never {LAYERS} {options.options}")
    end: dict[str, Any] = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return end


def _launch(options: VerifyOptions, grid: Grid, data: str, out: Path, steps: int, words: str) -> None:
    """Train on this grid. Raises InputError with what it said when it failed."""
    train = f"{sys.executable} -m mpi_parallel.train --data {data} --out {out} --steps {steps}"
    fixed = f"--progress none --no-report --pipe {grid[1]} --tensor {grid[2]}"
    launcher = (options.launcher or f"{mpirun_beside()} -n {{ranks}}").format(ranks=prod(grid))
    command = shlex.split(f"{launcher} {train} {fixed} {words}")
    try:
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=options.timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{shlex.join(command)}: {error}") from None
    if done.returncode:
        raise InputError(f"{shlex.join(command)} left with {done.returncode}:\n{done.stdout}{done.stderr}")


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
    run_alone(main)
