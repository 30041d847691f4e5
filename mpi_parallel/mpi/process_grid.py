"""The grid of ranks, data x pipe x tensor, and a communicator along each axis."""

from __future__ import annotations

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError


def divided(ranks: int, pipe: int, tensor: int) -> int:
    """How many data ranks pipe x tensor leave over. Raises InputError when they do not divide."""
    data, left = divmod(ranks, pipe * tensor)
    if left or not data:
        raise InputError(f"{ranks} ranks do not divide into {pipe} stages (--pipe) x {tensor} slices (--tensor)")
    return data


class ProcessGrid:
    """Ranks in a grid.

    `data`, `pipe` and `tensor` hold the ranks that differ from this one along that axis only, `model` those that have
    the parts of one whole model: one data index, all of pipe x tensor.
    """

    def __init__(self, world: Communicator, pipe: int = 1, tensor: int = 1) -> None:
        """The ranks that pipe x tensor leave over are data. Raises InputError when they do not divide."""
        data = divided(world.size, pipe, tensor)
        self.shape = {"data": data, "pipe": pipe, "tensor": tensor}
        # Row by row: rank 0 of the job is rank 0 of the grid, and neighbours on a node share the last axes. Split, as
        # Open MPI warns that its Cartesian topologies may not bear the death of a rank.
        row, t = divmod(world.rank, tensor)
        d, p = divmod(row, pipe)
        self.data, self.pipe = world.split(p * tensor + t), world.split(d * tensor + t)
        self.tensor, self.model = world.split(row), world.split(d)

    def free(self) -> None:
        """Give the communicators back to MPI, which has not many: MPICH 2,048 in all. All ranks together."""
        for axis in (self.data, self.pipe, self.tensor, self.model):
            axis.free()

    @property
    def speaks(self) -> bool:
        """Whether this is the one rank of its model whose loss counts: of the last stage, the first slice."""
        return self.pipe.rank == self.pipe.size - 1 and self.tensor.rank == 0
