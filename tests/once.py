"""A mark for tests in which no message passes: of several MPIs they run with the first alone."""

import os

import pytest

AGAIN = "MPI_PARALLEL_TESTED_BEFORE"  # set by tests/run.py where the same tests have run with another MPI

once = pytest.mark.skipif(AGAIN in os.environ, reason="is no other with this MPI, and has run with the first")
