"""Starting ranks from a program that is not one of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A launcher must not take itself for a rank of another one, so what that told its ranks is not passed on ...
TOLD = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HYDI_")
# ... while what the user told the MPI is.
ASKED = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_MCA_", "PRTE_MCA_")


def mpirun_beside() -> str:
    """The mpirun beside this python, else the one on PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else "mpirun"


def child_environment() -> dict[str, str]:
    """The environment for a launcher that is started from here."""
    return {name: value for name, value in os.environ.items() if not name.startswith(TOLD) or name.startswith(ASKED)}
