"""What a machine may lack for a test: a reason to skip it, but in CI, where nothing is lacking, a failure."""

import os
from typing import NoReturn

import pytest

NOTHING = "MPI_PARALLEL_LACKS_NOTHING"  # set in the environment where no test may be skipped for want of something


def lacking(what: str) -> NoReturn:
    """End the test, as this is not here."""
    (pytest.fail if os.environ.get(NOTHING) else pytest.skip)(what)
