"""How far the ranks' clocks differ."""

from time import perf_counter

import pytest

from mpi_parallel.mpi.clocks import seconds_behind
from tests.assembly import world


@pytest.mark.parallel([1, 2, 3, 4])
def test_ranks_of_one_machine_have_one_clock():
    behind, wrong = seconds_behind(world())
    assert abs(behind) <= wrong
    assert wrong < 0.1


@pytest.mark.parallel([2, 3, 4])
def test_a_clock_that_is_wrong_is_found_out():
    rank = world().rank
    behind, wrong = seconds_behind(world(), lambda: perf_counter() - 10.0 * rank)
    assert behind == pytest.approx(10.0 * rank, abs=wrong + 1e-9)
