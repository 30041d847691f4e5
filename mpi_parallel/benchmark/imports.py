"""`python -m mpi_parallel.benchmark imports`: what `import mpi_parallel.train` takes beyond NumPy, h5py and mpi4py.

Fresh processes take turns. MPI itself is not started, which takes its time in both and would drown the difference.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from statistics import median

from mpi_parallel.benchmark.timing import keep
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.launcher import child_environment
from mpi_parallel.options import option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least

SENTENCE = "Measure how long importing the training program takes beyond importing NumPy, h5py and mpi4py."
THEIRS, OURS = "numpy, h5py, mpi4py", "mpi_parallel.train"
IMPORTS = {THEIRS: "import numpy, h5py; from mpi4py import MPI", OURS: "import mpi_parallel.train"}
TIMED = """
import mpi4py, time
mpi4py.rc.initialize = False
began = time.perf_counter()
{}
print(time.perf_counter() - began)
"""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """what is measured"""

    rounds: int = option(15, "fresh processes of each kind", check=at_least(1))
    to: str | None = option(None, "also write the figures as JSON", name="FILE.json")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """All options of `benchmark imports`."""

    imports: ImportOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Measure on rank 0, show and keep; the exit status."""
    config = parse(ImportConfig, arguments, "mpi_parallel.benchmark imports", SENTENCE, speaks=world.rank == 0)
    if world.rank == 0:
        seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
        for _ in range(config.imports.rounds + 1):
            for name, statement in IMPORTS.items():
                seconds[name].append(_seconds(statement))
        medians = {name: median(times[1:]) for name, times in seconds.items()}  # the first finds the files on the disk
        for name, value in medians.items():
            print(f"{name:24}{1e3 * value:8.0f} ms")
        print(f"{'more':24}{1e3 * (medians[OURS] - medians[THEIRS]):8.0f} ms")
        keep({"seconds": medians}, config, config.imports.to, world)
    world.meet()
    return 0


def _seconds(statement: str) -> float:
    command = [sys.executable, "-c", TIMED.format(statement)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=60, check=True)
    return float(done.stdout)
