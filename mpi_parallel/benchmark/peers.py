"""`python -m mpi_parallel.benchmark peers`: whole epochs here, in JAX and in PyTorch DDP, in turn on the same cores.

The peers run in a Python of their own (--python), which needs h5py and jax or torch; one that is not there is left out.
Figures are ratios of rounds that follow each other, as machines are shared and noisy.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from mpi_parallel.benchmark.timing import keep
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.launcher import child_environment, mpirun_beside
from mpi_parallel.options import InputError, option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least

SENTENCE = "Train whole epochs here and with JAX and PyTorch DDP, in turn, and compare samples per second."
HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class PeerOptions:
    """what is compared"""

    data: str = option(..., "file of images and labels in our layout, with splits", name="FILE.h5")
    python: str = option(sys.executable, "python that has the peers, such as another environment's", name="PYTHON")
    ranks: int = option(2, "ranks of our runs", check=at_least(1))
    hidden: tuple[int, ...] = option((128, 64), "widths of the hidden layers", check=at_least(1))
    batch_size: int = option(256, "rows of a step over all processes together", check=at_least(1))
    epochs: int = option(6, "epochs of each run; the first one does not count", check=at_least(2))
    rounds: int = option(3, "rounds", check=at_least(1))
    options: str = option("", "further options of our train", name="TEXT")
    to: str | None = option(None, "also write the figures as JSON", name="FILE.json")


@dataclass(frozen=True, kw_only=True)
class PeersConfig:
    """All options of `benchmark peers`."""

    peers: PeerOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Measure, show and keep; the exit status."""
    if world.size > 1:
        raise InputError("benchmark peers starts its own ranks: run it without mpirun")
    config = parse(PeersConfig, arguments, "mpi_parallel.benchmark peers", SENTENCE)
    options = config.peers
    runs: dict[str, Callable[[PeerOptions], float]] = {"mpi_parallel": _ours}
    for name in ("jax", "torch"):
        if subprocess.run([options.python, "-c", f"import h5py, {name}"], capture_output=True).returncode:
            print(f"{options.python} has no {name} (or no h5py): left out")
        else:
            runs[name] = partial(_peer, name)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            rates[name].append(run(options))
    figures = {name: _figures(rates, name) for name in rates}
    for name, told in figures.items():
        print(f"{name:13} {told['samples_per_second']:12,.0f} samples/s   we are {told['ratio']:.2f} times as fast")
    keep({"peers": figures}, config, options.to, world)
    return 0


def _figures(rates: dict[str, list[float]], name: str) -> dict[str, float]:
    """The median rate, and the median over rounds of ours against it."""
    ratios = [ours / theirs for ours, theirs in zip(rates["mpi_parallel"], rates[name], strict=True)]
    return {"samples_per_second": median(rates[name]), "ratio": median(ratios)}


def _ours(options: PeerOptions) -> float:
    """Samples per second of a run's epochs, the first apart, their median."""
    with tempfile.TemporaryDirectory() as folder:
        train = [sys.executable, "-m", "mpi_parallel.train", "--data", options.data, "--out", f"{folder}/run"]
        more = ["--epochs", str(options.epochs), "--batch-size", str(options.batch_size), "--progress", "none"]
        hidden = ["--hidden", *map(str, options.hidden)]
        _run([mpirun_beside(), "-n", str(options.ranks), *train, *more, *hidden, *shlex.split(options.options)])
        events = map(json.loads, Path(folder, "run", "metrics.jsonl").read_text().splitlines())
        rates = [float(event["samples_per_second"]) for event in events if event["event"] == "epoch"]
        return median(rates[1:])


def _peer(name: str, options: PeerOptions) -> float:
    """The same of a peer."""
    settings = map(str, (options.data, options.epochs, options.batch_size, *options.hidden))
    told = _run([options.python, str(HERE / f"peer_{name}.py"), *settings])
    return median([float(json.loads(line)["samples_per_second"]) for line in told.splitlines()][1:])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise InputError(f"{shlex.join(command)} left with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
