"""One training that is broken off and taken up again, for the campaigns: its jobs, its checkpoints, what went wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from survive import MPIRUN, ROOT, ranks_of

from mpi_parallel.mpi.launcher import child_environment
from mpi_parallel.options import InputError
from mpi_parallel.training.checkpoints.checkpoint import read_checkpoint


@dataclass
class Training:
    """One training, whatever happens to it."""

    folder: Path
    data: Path
    steps: int
    rng: random.Random
    latest: float  # seconds after its start at which a job is struck
    deadline: float  # seconds for a job
    log: str = ""
    wrong: list[str] = field(default_factory=list)  # what went otherwise than promised
    lost: list[int] = field(default_factory=list)  # samples that were trained on and had to be trained on again

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def file(self) -> Path:
        """What a job says; not on the disk of its run, which may be full."""
        return self.folder.with_suffix(".log")

    @property
    def told(self) -> list[dict[str, Any]]:
        """The events so far; a job that is killed may leave a part of a line."""
        path = self.out / "metrics.jsonl"
        lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def start(self, ranks: int) -> subprocess.Popen[bytes]:
        """A job that goes on with the training: short epochs and many checkpoints, so that anything may be struck."""
        options = f"--reproducible --steps {self.steps} --checkpoint-every 40 --keep 3 --resume auto --progress none"
        program = [sys.executable, "-m", "mpi_parallel.train", "--data", str(self.data), "--out", str(self.out)]
        quiet = "--no-report --threads 1 --hang-timeout 60s"
        with self.file.open("wb") as log:
            command = [str(MPIRUN), "-n", str(ranks), *program, *options.split(), *quiet.split()]
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=child_environment())

    def end(self, job: subprocess.Popen[bytes]) -> int:
        """The status of a job that ends by itself."""
        try:
            status = job.wait(self.deadline)
        except subprocess.TimeoutExpired:
            for rank in ranks_of(job.pid):
                send(rank, signal.SIGQUIT)  # on which it shows its stack
            time.sleep(1)
            self.wrong.append(f"hung\n{self.file.read_text(errors='replace')[-6000:]}")
            kill(job)
            status = job.wait()
        self.log = self.file.read_text(errors="replace")
        return status

    def checkpoints(self) -> list[Path]:
        return sorted((self.out / "checkpoints").glob("step-*.h5"), reverse=True)

    def check(self) -> None:
        """The newest checkpoint or the one before is whole."""
        newest = self.checkpoints()[:2]
        if newest and not any(map(whole, newest)):
            self.wrong.append(f"no whole checkpoint among {', '.join(path.name for path in newest)}")

    def count_loss(self) -> None:
        """What the last two jobs both did, as far as epochs tell."""
        reached = 0
        for event in self.told:
            if event["event"] == "resume":
                self.lost.append(256 * max(0, reached - event["step"]))
            reached = event["step"] if event["event"] in ("epoch", "resume", "end") else reached


def whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except InputError:
        return False
    return True


def listens(pid: int) -> bool:
    """Whether a rank has come as far as to catch the last of the signals that it catches."""
    with suppress(OSError):
        caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return bool(int(caught, 16) >> (signal.SIGUSR2 - 1) & 1)
    return False


def kill(job: subprocess.Popen[bytes], number: signal.Signals = signal.SIGKILL) -> None:
    """All of a job."""
    for pid in (*ranks_of(job.pid), job.pid):
        send(pid, number)


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
