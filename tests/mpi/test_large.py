"""Messages of more than 2^31 bytes, as they are: what the tests with a smaller limit promise, MPI keeps.

They take 13 GB of memory and half a minute: mpirun -n 2 python -m pytest -m large tests/mpi/test_large.py
"""

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.mpi.communicator import Communicator

BYTES = 2**31 + 2**20
PLACES = [0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**31, BYTES - 1]


@pytest.mark.large
@pytest.mark.parallel(2)
def test_sums_and_shares_beyond_2_to_the_31_bytes():
    comm = Communicator(MPI.COMM_WORLD)
    array = np.zeros(BYTES, np.uint8)
    array[PLACES] = comm.rank + 1
    comm.sum(array)
    assert array[PLACES].tolist() == [3] * len(PLACES)
    assert np.count_nonzero(array) == len(PLACES)
    mine = comm.share(BYTES)
    array[mine] = comm.rank + 5
    comm.gather_shares(array)
    spans = [slice(0, mine.stop), slice(mine.stop, None)] if comm.rank == 0 else [slice(0, mine.start), mine]
    assert [(int(array[span].min()), int(array[span].max())) for span in spans] == [(5, 5), (6, 6)]
