"""What the ranks of a grid read: images on the first stage, each once a node, and elsewhere labels alone."""

import numpy as np
import pytest

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.data_parallel.evaluation import evaluation_rows
from mpi_parallel.data_parallel.loader import TrainingRows
from mpi_parallel.data_parallel.memory import Budget
from mpi_parallel.data_parallel.split import Split
from mpi_parallel.device import Host
from tests.assembly import ALONE, assemble, grid_of, world
from tests.samples import write_image_set

ROWS, TEST, FEATURES = 61, 20, 12


@pytest.fixture
def read(monkeypatch):
    """The numbers of images, and of labels, that this rank has asked the file for."""
    counts, own = {"images": 0, "labels": 0}, Split.load

    def load(split, source, part, images, labels):
        counts["images"] += images.size
        counts["labels"] += labels.size
        return own(split, source, part, images, labels)

    monkeypatch.setattr(Split, "load", load)
    return counts


@pytest.fixture
def path(shared_path):
    return write_image_set(shared_path / f"set-{world().rank}.h5", ROWS, test=TEST)


@pytest.mark.parallel([2, 3, 4])
def test_only_the_first_stage_reads_images_and_shares_what_it_reads(path, read):
    ranks = world().size
    for pipe, tensor in [(p, t) for p in (2, 3) for t in (1, 2) if ranks % (p * t) == 0]:
        read.update(images=0, labels=0)
        run = assemble(path, world(), pipe=pipe, tensor=tensor)
        grid, first = run.grid, run.grid.pipe.rank == 0
        shared = grid.tensor.size if first else (pipe - 1) * tensor
        assert run.training.rows.images.shape[1] == (FEATURES if first else 0)
        assert run.test.images.shape[1] == (FEATURES if first else 0)
        numbers = np.array([read["images"], read["labels"]])
        everyone = run.comm.gather(numbers)
        stages = np.array(run.comm.gather(np.array([grid.pipe.rank])))[:, 0]
        assert everyone[stages > 0, 0].sum() == 0
        # The training split once, for all slices together; the test split by each slice.
        assert everyone[stages == 0, 0].sum() == FEATURES * (ROWS + TEST * tensor)
        assert run.training.peers.size == shared


@pytest.mark.parallel([2, 3])
def test_without_images_the_labels_stream_in_the_same_order(path, read):
    grid = grid_of(world().comm.py2f(), world().size, 1)
    data = open_image_set(DataOptions(data=str(path)), 0, ALONE)
    budget, first = Budget(holding="streaming", window=400), grid.pipe.rank == 0
    training = TrainingRows(data, 8, 0, grid.data, Host(), budget, peers=grid.model, images=first)
    labels = []
    for batch in training.epoch(0, 16):
        ws = assemble(path, ALONE).model.workspace
        labels.append(training.rows.labels_of(ws, batch.index).copy())
    everyone = world().gather(np.concatenate(labels))
    assert (everyone == everyone[0]).all()
    assert len(set(world().gather_text(training.digest))) == 1
    rows = evaluation_rows(data.test, training.scaler, grid.data, Host(), budget, images=first)
    rows.rewind()
    assert len(rows) == TEST
    np.testing.assert_array_equal(training.scaler.mean, world().broadcast(training.scaler.mean))
    for held in (rows, training.rows):
        held.close()
    training.free()
    if not first:
        assert training.rows.images.shape[1] == 0
