"""What a job leaves behind, and its processes while it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.launch import processes

DATA = str(Path(__file__).parents[2] / "data" / "fashion-mnist-small.h5")
MPICH = {
    "SLURM_MPI_TYPE": "pmi2",
    "MPI4PY_LIBMPI": str(Path(sys.prefix) / "mpich" / "lib" / "libmpi.so.12"),
    # Ranks of one node tell each other their addresses through shared memory when they start, and under srun some read
    # them too early: 7 of 33 starts on 2 ranks failed ("invalid bandwidth 0.00", "Message truncated"), whatever UCX may
    # use. As if each rank were a node of its own: none of 14.
    "MPIR_CVAR_NOLOCAL": "1",
    "UCX_TLS": "self,tcp",
}


def events(folder: Path, run: str) -> list[dict]:
    """The lines of its metrics so far."""
    path = folder / "runs" / run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def log(folder: Path) -> str:
    """What the jobs that were submitted from here have printed."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("slurm-*.out")))


def ranks(mark: str) -> list[int]:
    """The processes of a job that bears this mark, by rank."""
    found = {}
    for pid, command in processes(mark).items():
        if "python" in command.partition(" ")[0] and "mpi_parallel.train" in command:
            variables = dict(v.split("=", 1) for v in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in v)
            found[int(variables.get("OMPI_COMM_WORLD_RANK") or variables["SLURM_PROCID"])] = pid
    return [found[rank] for rank in sorted(found)]
