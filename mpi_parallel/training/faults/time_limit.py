"""When the job will be ended, and when to stop before that: measured steps and checkpoints decide."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from mpi_parallel.device.clock import process_seconds
from mpi_parallel.options.values import seconds_of
from mpi_parallel.training.log import logger

AUTO = "auto"
# Of the time that is left at the start, kept for what nobody measured; at the most so many seconds.
SPARE, MOST_SPARE = 0.05, 20.0
SLOWER = 1.5  # times that a step, or the evaluation between two, may take longer than ever before
SAVING_SLOWER = 2.0  # times that a checkpoint may
PATIENCE = 10.0  # seconds for squeue


class TimeLimit:
    """Tells one rank, before each step, whether there is time for one more and the checkpoint behind it."""

    def __init__(self, end: float, now: Callable[[], float] = time.time) -> None:
        """`end` is the time, in seconds since 1970, at which the job is ended."""
        self.end, self._now = end, now
        self.spare = min(MOST_SPARE, SPARE * max(0.0, end - now()))
        self.longest = 0.0  # seconds from one step to the next
        self.reached = False
        self._last: float | None = None
        self._recent: deque[float] = deque(maxlen=16)  # seconds from one step to the next, of the last ones

    def near(self, saving: float, ahead: int = 0) -> bool:
        """Whether the coming step has to be the last, a checkpoint taking `saving` seconds.

        That it is may be heard of `ahead` steps later, and as many may be under way already.
        """
        now = self._now()
        if self._last is not None:
            self.longest = max(self.longest, now - self._last)
            self._recent.append(now - self._last)
        self._last = now
        steps = max(self.longest, sum(islice(reversed(self._recent), 1 + 2 * ahead)) if ahead else 0.0)
        self.reached = now + SLOWER * steps + SAVING_SLOWER * saving + self.spare >= self.end
        return self.reached


def time_limit_of(asked: str) -> TimeLimit | None:
    """The limit that --time-limit asks for, counted from the start of this process; None where there is none.

    `auto` is the end of the Slurm job.
    """
    if asked != AUTO:
        return TimeLimit(time.time() - process_seconds() + seconds_of(asked))
    end = _end_of_job()
    return None if end is None else TimeLimit(end)


def _end_of_job() -> float | None:
    """When Slurm will end the job this process is in: it tells newer jobs, and squeue tells others."""
    told, job = os.environ.get("SLURM_JOB_END_TIME"), os.environ.get("SLURM_JOB_ID")
    if told and told.isdecimal():
        return float(told)
    if not job:
        return None
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%e"]
    environment = os.environ | {"SLURM_TIME_FORMAT": "%s"}
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment).stdout.strip()
        return float(said)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        logger.warning("--time-limit auto: when job %s ends is not known (%s): stop it by a signal", job, error)
        return None
