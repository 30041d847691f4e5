"""Buckets travel while backward goes on."""

import time
from itertools import pairwise

import numpy as np
import pytest

from mpi_parallel.device import Host
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.result_merging.buckets import Buckets, spans
from tests.assembly import world

SHAPES = [(f"{kind}{n}", (size,)) for n in reversed(range(5)) for kind, size in (("W", 40_000), ("b", 100))]


def test_buckets_are_whole_parameters_in_order_and_the_last_takes_the_rest():
    parameters = list(ParameterStore(Host(), SHAPES).parameters.values())
    assert spans(parameters, 1) == [parameter.span for parameter in parameters]
    assert spans(parameters, 1 << 30) == [slice(0, parameters[-1].span.stop)]
    for nbytes in (1000, 160_000, 160_100, 400_000):
        cut = spans(parameters, nbytes)
        assert cut[0].start == 0
        assert all(one.stop == following.start for one, following in pairwise(cut))
        assert cut[-1].stop == parameters[-1].span.stop
        assert all(4 * (span.stop - span.start) >= nbytes for span in cut)


@pytest.mark.parallel([1, 2, 3, 4])
def test_sums_end_while_backward_goes_on():
    """All but the last bucket have been summed before the last layer is done, as the recorded times show."""
    comm, store = world(), ParameterStore(Host(), SHAPES)
    merger = Buckets(store, comm, 4 * 40_100)
    layers = [list(store.parameters.values())[n : n + 2] for n in range(0, len(SHAPES), 2)]
    for _ in range(3):
        store.gradients[:] = comm.rank + 1
        comm.meet()
        for layer in layers[:-1]:
            merger.ready(layer)
        deadline = time.monotonic() + 30  # the last layer's arithmetic, which lets MPI work now and then
        while any(bucket.sum for bucket in merger.buckets) and time.monotonic() < deadline:
            merger.ready(layers[-2])
            time.sleep(0.0005)
        backward_ended = time.perf_counter()
        merger.ready(layers[-1])
        merger.merge()
        assert len(merger.buckets) == 4
        for bucket in merger.buckets:
            assert bucket.begun < bucket.ended < backward_ended
        assert merger.rest.begun > backward_ended
        assert (store.gradients == sum(range(1, comm.size + 1))).all()


@pytest.mark.parallel([1, 2])
def test_a_layer_that_was_forgotten_is_noticed():
    store = ParameterStore(Host(), SHAPES)
    merger = Buckets(store, world(), 1000)
    merger.ready([store.parameters["W4"]])
    with pytest.raises(AssertionError, match="ready was not called"):
        merger.merge()
    for bucket in merger.buckets:
        bucket.finish()
    assert np.isfinite(store.gradients).all()
