"""The exact mergers: their tree is one tree, and training with it gives the same bits on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device import Host
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.nn.store import COUNT, SAVE, STOP, ParameterStore
from mpi_parallel.result_merging.registry import CANONICAL
from mpi_parallel.result_merging.tree import additions, deepest, subtrees
from tests.assembly import ALONE, assemble, world
from tests.result_merging.kinds import TREES
from tests.samples import write_image_set

KIND = pytest.mark.parametrize("kind", TREES)
POWERS = st.sampled_from([1, 2, 4, 8, 16, 32])


@given(POWERS, st.integers(1, 40))
def test_subtrees_of_all_ranks_tile_the_groups_and_are_whole(groups, ranks):
    trees = [tree for rank in range(ranks) for tree in subtrees(block(groups, ranks, rank))]
    assert [group for tree in trees for group in tree] == list(range(groups))
    for tree in trees:
        assert len(tree) & (len(tree) - 1) == 0
        assert tree.start % len(tree) == 0


@given(POWERS, st.integers(1, 40))
def test_any_ranks_add_in_the_order_of_the_one_tree(groups, ranks):
    """Sums of names show the bracketing: it must be that of a single rank."""

    def fold(tree):
        if len(tree) == 1:
            return f"{tree.start}"
        middle = (tree.start + tree.stop) // 2
        return f"({fold(range(tree.start, middle))}+{fold(range(middle, tree.stop))})"

    trees = [tree for rank in range(ranks) for tree in subtrees(block(groups, ranks, rank))]
    sums = [fold(tree) for tree in trees]
    plan = additions({tree: row for row, tree in enumerate(trees)}, range(groups))
    for to, other in plan:
        sums[to] = f"({sums[to]}+{sums[other]})"
    assert sums[plan[-1][0] if plan else 0] == fold(range(groups))


@given(POWERS, st.integers(1, 9))
def test_what_waits_fits_the_memory_for_it(groups, ranks):
    for rank in range(ranks):
        own = block(groups, ranks, rank)
        assert max(1, len(subtrees(own))) <= deepest(own) <= 2 * groups.bit_length()


def merge_of(kind: str, comm: Communicator, groups: int, stop_rank: int | None = None):
    """Gradients of wild sizes, collected by their owners, merged and applied."""
    store = ParameterStore(Host(), [("W", (17, 5)), ("b", (5,))])
    merger, told = TREES[kind](store, comm, groups), []
    assert merger.groups == len(block(groups, comm.size, comm.rank))
    optimizer = RULES["adam"](store)
    for step in range(3):  # a step must not see the one before
        for group in block(groups, comm.size, comm.rank):
            random = np.random.default_rng([group, step])
            store.zero_grad()
            store.gradients[:] = random.normal(size=store.size) * 10.0 ** random.integers(-6, 6, store.size)
            store.tail[COUNT] = group + 1
            merger.collect()
        if comm.rank == stop_rank and step == 2:
            store.tail[[STOP, SAVE]] = 1
        totals = merger.merge()
        norm = merger.norm() if step else 1.0
        optimizer.step(merger.owned, 0.1, 1 / norm, merger.total)
        merger.publish()
        told.append((totals, norm))
    weights = store.weights.copy()
    merger.close()
    return weights, told


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2, 8, 16])
@KIND
def test_sums_are_the_bits_of_one_rank(kind, groups):
    comm = world()
    (ours, told), (alone, expected) = merge_of(kind, comm, groups), merge_of("exact", ALONE, groups)
    np.testing.assert_array_equal(ours, alone)
    assert told == expected
    assert told[0][0].count == groups * (groups + 1) // 2


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("groups", [1, 8])
def test_sums_are_sums(groups):
    comm = world()
    store = ParameterStore(Host(), [("W", (7, 5)), ("b", (5,))])
    merger = CANONICAL["exact"](store, comm, groups)
    for group in block(groups, comm.size, comm.rank):
        store.zero_grad()
        store.gradients[:] = merge_parts(group)
        merger.collect()
    merger.merge()
    plain = sum(np.asarray(merge_parts(group), float) for group in range(groups))
    np.testing.assert_allclose(store.gradients, plain, rtol=1e-4, atol=1e-2)


def merge_parts(group: int) -> np.ndarray:
    random = np.random.default_rng(group)
    return random.normal(size=40) * 10.0 ** random.integers(-6, 6, 40)


@pytest.mark.parallel([2, 3, 4])
@KIND
def test_a_stop_is_heard_from_any_rank_also_from_one_without_groups(kind):
    comm = world()
    for rank in range(comm.size):
        assert merge_of(kind, comm, 2, stop_rank=rank)[1][-1][0].stop
        assert merge_of(kind, comm, 2, stop_rank=rank)[1][-1][0].save
    totals = merge_of(kind, comm, 2)[1][-1][0]
    assert not (totals.stop or totals.save)


@pytest.mark.parallel([1, 3])
@KIND
def test_what_is_not_finite_is_flagged_and_not_rounded_away(kind):
    comm = world()
    store = ParameterStore(Host(), [("W", (2, 2)), ("b", (2,))])
    merger = TREES[kind](store, comm, 4)
    for group in block(4, comm.size, comm.rank):
        store.zero_grad()
        store.gradients[:] = 1
        store.gradients[0] = np.inf if group == 2 else 1
        store.flag_bad()
        merger.collect()
    assert not merger.merge().finite
    merger.close()


CASES = {
    "sgd": {},
    "adam": {"optimizer": "adam"},
    "adamw with dropout": {"optimizer": "adamw", "weight_decay": 0.1, "dropout": 0.3},
    "micro-batches": {"micro_batch": 2},
    "groups of no rows": {"batch_size": 3},
    "fewer groups than ranks": {"groups": 2},
    "one group": {"groups": 1},
    "more groups": {"groups": 16},
}


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("merge", CANONICAL)
def test_training_ends_with_the_bits_of_one_rank(merge, case, tmp_path):
    comm = world()
    path = tmp_path / "images.h5"  # of this rank
    write_image_set(path, 61, test=20)
    settings = {"groups": 8, "shards": 16, "batch_size": 14} | CASES[case]
    together, alone = assemble(path, comm, merge=merge, **settings), assemble(path, ALONE, merge="exact", **settings)
    ours, theirs = (run.train(11, rate=0.01, clip_norm=0.5) for run in (together, alone))
    assert ours == theirs
    np.testing.assert_array_equal(together.weights(), alone.weights())
    assert together.score(together.test) == alone.score(alone.test)
    together.merger.close()
