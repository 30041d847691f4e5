"""What a run is: what its weights follow from, and where they were made. Kept in every checkpoint."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mpi_parallel
from mpi_parallel.mpi.process_grid import ProcessGrid
from mpi_parallel.options import to_tables
from mpi_parallel.training.banner import versions

if TYPE_CHECKING:
    from mpi_parallel.training.run import Run

JOB = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "PBS_JOBID", "LSB_JOBID")


def identity_of(run: Run, grid: ProcessGrid, threads: int) -> dict[str, Any]:
    """The facts of a run that stay as they are; JSON can hold them. All ranks together."""
    data = run.data
    hosts = list(dict.fromkeys(run.comm.gather_text(platform.node())))
    return {
        "config": to_tables(run.config),
        "widths": list(run.engine.model.widths),
        "classes": None if data.classes is None else list(data.classes),
        "image_shape": list(data.shape),
        "image_dtype": str(data.dtype),
        "data": {"file": data.path, "rows": run.training.total, "sha256": run.training.digest},
        "holding": run.training.holding,
        "total_steps": run.total_steps,
        "seed": run.config.batch.seed,
        "groups": run.config.groups,
        "arithmetic": f"{run.engine.store.device.describe()}; {threads} thread{'s' * (threads > 1)} a rank",
        "ranks": run.comm.size,
        "grid": grid.shape,
        "hosts": hosts,
        "job": {name: os.environ[name] for name in JOB if name in os.environ},
        "git": _commit(Path(mpi_parallel.__file__).parent.parent),
        "versions": versions(),
    }


def _commit(folder: Path) -> str | None:
    """The commit that is checked out in a folder, read without running git; None where there is none."""
    try:
        git = folder / ".git"
        if git.is_file():  # a worktree's
            git = Path(git.read_text().removeprefix("gitdir:").strip())
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
        if (common / name).exists():
            return (common / name).read_text().strip()
        packed = (common / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except OSError:
        return None
