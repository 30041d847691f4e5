"""A mark for tests in which no message passes: they run with the first MPI alone."""

import pytest
from mpi4py import MPI

once = pytest.mark.skipif("MPICH" in MPI.Get_library_version(), reason="is no other with MPICH, and runs with Open MPI")
