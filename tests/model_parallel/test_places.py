"""Where the ranks' parameters lie in the whole network."""

import numpy as np
import pytest

from mpi_parallel.device import Host
from mpi_parallel.training.layout import open_model
from tests.assembly import grid_of, world

WIDTHS = (12, 9, 7, 5, 4)


@pytest.mark.parallel([1, 2, 3, 4])
def test_the_ranks_places_cover_the_whole_network_once_with_the_right_numbers():
    comm = world()
    for pipe, tensor in [(p, t) for p in (1, 2, 3, 4) for t in (1, 2, 3, 4) if comm.size % (p * t) == 0]:
        model = open_model(Host(), WIDTHS, grid_of(comm.comm.py2f(), pipe, tensor), 0.0, 3)
        names = [f"{kind}{number}" for number in range(len(WIDTHS) - 1) for kind in "Wb"]
        whole = dict(zip(names, model.weights(), strict=True))
        covered = {name: np.zeros(array.shape) for name, array in whole.items()}
        places = model.places()
        assert [place.parameter for place in places] == list(model.store.parameters.values())
        for place in places:
            assert place.shape == whole[place.name].shape
            np.testing.assert_array_equal(place.parameter.value, whole[place.name][place.index])
            covered[place.name][place.index] += 1
        for name, array in covered.items():
            comm.sum(array)
            assert (array == comm.size // (pipe * tensor)).all(), name
