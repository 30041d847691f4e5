"""MPI-native training of image classifiers; start reading at train.py."""

import os
import signal
import sys
from importlib import import_module
from typing import Any

from mpi_parallel.signals import REQUESTS, is_training

# OpenMP's threads read this when they are loaded. Left alone they go on spinning between kernels, on the cores that the
# threads of BLAS need: with 2 threads a rank on 2 cores a step of the default network took 12.5 ms, and 0.8 with this.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A training remembers from here on what it is asked. In other programs, which show as "-m" here, SIGINT ends the
# process at once until mpi.session.launch takes over: an exception between the import of MPI and there leads to
# MPI_Finalize, where this rank would wait for the others.
if is_training():
    REQUESTS.listen()
elif sys.argv[:1] == ["-m"]:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`from mpi_parallel import Classifier` loads it then, and not with every other import of the package."""
    if name == "Classifier":
        return import_module("mpi_parallel.classifier").Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
