"""Who sets the pace of the steps on the cores, and which passes are replayed there."""

import pytest

from mpi_parallel.config import TrainConfig
from mpi_parallel.options.command_line import parse
from mpi_parallel.training.pacing import open_steps
from mpi_parallel.training.step import HostSteps
from tests.assembly import ALONE, assemble
from tests.once import once
from tests.samples import write_image_set

pytestmark = once


@pytest.mark.parametrize(
    ("graphs", "merge", "groups", "replayed"),
    [(True, "flat", None, True), (False, "flat", None, False), (True, "buckets", None, False), (True, None, 4, True)],
)
def test_passes_are_replayed_unless_told_not_to_or_sums_begin_meanwhile(tmp_path, graphs, merge, groups, replayed):
    path = write_image_set(tmp_path / "set.h5", train=61)
    run = assemble(path, ALONE, merge=merge, groups=groups)
    words = ["--data", str(path), *([] if graphs else ["--no-graphs"])]
    config = parse(TrainConfig, words, "train", "")
    steps = open_steps(run.engine, run.merger, run.optimizer, config, 10)
    assert isinstance(steps, HostSteps)
    assert (run.engine.replays is not None) == replayed
    for number, batch in enumerate(run.training.epoch(0, run.batch_size)):
        assert steps(batch, number).finite
    if replayed:
        assert run.engine.replays.works
