"""Messages between neighbours: what is sent arrives, in its order, of whatever type and device."""

import numpy as np
import pytest

from mpi_parallel.device import Host
from mpi_parallel.mpi.link import IN_FLIGHT, Link
from tests.assembly import world
from tests.device.strict import Strict


@pytest.mark.parallel([2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
@pytest.mark.parametrize("make", [Host, Strict])
def test_arrays_arrive_in_their_order(make, dtype):
    device, comm = make(), world()
    link = Link(comm.on(device), 1 - comm.rank)
    arrays = [np.arange(rows * 3).reshape(rows, 3).astype(dtype) + rows for rows in (2, 7, 0, 4, 1)]
    if comm.rank == 0:
        for array in arrays:
            link.send(device.to_device(array))
        link.settle()
    else:
        for start in range(0, len(arrays), IN_FLIGHT):
            some = arrays[start : start + IN_FLIGHT]
            expected = [link.expect(device.to_device(np.zeros_like(array))) for array in some]
            for array, arrived in zip(some, expected, strict=True):
                np.testing.assert_array_equal(device.to_host(arrived.wait()), array)
