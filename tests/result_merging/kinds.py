"""The mergers under test, by name: those of the registry, and some on nodes that are only pretended."""

from mpi_parallel.result_merging.buckets import Buckets
from mpi_parallel.result_merging.exact_window import ExactWindow
from mpi_parallel.result_merging.registry import CANONICAL, MERGERS
from mpi_parallel.result_merging.window import Window


class Simulated(Window):
    """The window on nodes that have two ranks each, or one where ranks are left over."""

    def __init__(self, store, comm):
        super().__init__(store, comm, comm.split(comm.rank // 2))


class Lonely(Window):
    """The window on nodes of one rank."""

    def __init__(self, store, comm):
        super().__init__(store, comm, comm.split(comm.rank))


def small_buckets(store, comm):
    return Buckets(store, comm, 64)


def nodes_of_two(store, comm, groups):
    return ExactWindow(store, comm, groups, comm.split(comm.rank // 2))


def nodes_of_one(store, comm, groups):
    return ExactWindow(store, comm, groups, comm.split(comm.rank))


def nodes_in_turn(store, comm, groups):
    """Ranks are dealt to two nodes, as some launchers do."""
    return ExactWindow(store, comm, groups, comm.split(comm.rank % 2))


SUMS = {**MERGERS, "small buckets": small_buckets, "nodes of two": Simulated, "nodes of one": Lonely}
TREES = {**CANONICAL, "nodes of two": nodes_of_two, "nodes of one": nodes_of_one, "nodes in turn": nodes_in_turn}
