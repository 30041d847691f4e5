"""The grid of ranks and the communicators along its axes."""

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.process_grid import ProcessGrid
from mpi_parallel.options import InputError

AXES = "data", "pipe", "tensor"
GRIDS = [(pipe, tensor) for pipe in (1, 2, 3, 4) for tensor in (1, 2, 3, 4)]


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize(("pipe", "tensor"), GRIDS)
def test_axes_multiply_to_the_ranks_or_the_grid_is_refused(pipe, tensor):
    world = Communicator(MPI.COMM_WORLD)
    if world.size % (pipe * tensor):
        message = rf"{world.size} ranks do not divide into {pipe} stages \(--pipe\) x {tensor} slices \(--tensor\)"
        with pytest.raises(InputError, match=message):
            ProcessGrid(world, pipe, tensor)
        return
    grid = ProcessGrid(world, pipe, tensor)
    assert grid.shape == {"data": world.size // (pipe * tensor), "pipe": pipe, "tensor": tensor}
    assert {name: getattr(grid, name).size for name in AXES} == grid.shape
    # Rank = (data, pipe, tensor) with the last axis fastest: neighbours, mostly on one node, hold slices of one layer.
    place = np.unravel_index(world.rank, tuple(grid.shape.values()))
    assert [getattr(grid, name).rank for name in AXES] == list(place)


@pytest.mark.parallel([4])
@pytest.mark.parametrize(("pipe", "tensor"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_an_axis_holds_the_ranks_that_differ_along_it_alone(pipe, tensor):
    world = Communicator(MPI.COMM_WORLD)
    grid = ProcessGrid(world, pipe, tensor)
    numbers = np.arange(4).reshape(tuple(grid.shape.values()))
    place = np.unravel_index(world.rank, numbers.shape)
    for axis, name in enumerate(AXES):
        line = numbers[tuple(slice(None) if k == axis else place[k] for k in range(3))]
        assert getattr(grid, name).gather(np.array(world.rank)).tolist() == line.tolist()


@pytest.mark.parallel([1, 2, 3])
def test_communicators_speak_of_the_device_of_the_world():
    device = object()
    grid = ProcessGrid(Communicator(MPI.COMM_WORLD).on(device))
    assert all(getattr(grid, name).device is device for name in AXES)
