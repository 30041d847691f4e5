"""What a run keeps for its pictures: the same whatever the ranks and the layout."""

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.pictures.records import GALLERY, Gallery
from mpi_parallel.train import main
from mpi_parallel.training.gallery import MISTAKES, UNITS
from tests.samples import write_image_set


@pytest.fixture
def keep(shared_path):
    """Run a short training on all ranks with a report; its gallery, and its data file."""

    def run(*options, name="run", comm=MPI.COMM_WORLD):
        world = Communicator(comm)
        data = write_image_set(shared_path / f"set-{MPI.COMM_WORLD.rank}.h5", 60, None, 700)
        given = ["--data", data, "--out", shared_path / name, "--steps", 3, "--batch-size", 16, "--hidden", 8]
        assert main(world, [str(word) for word in (*given, "--progress", "none", *options)]) == 0
        MPI.COMM_WORLD.Barrier()
        return Gallery.read(shared_path / name / GALLERY), data

    return run


@pytest.mark.parallel([1, 2, 3])
def test_mistakes_are_rows_of_the_file_the_surest_first(keep):
    gallery, data = keep()
    assert gallery.confusion.sum() == 700
    mistakes = gallery.confusion.sum() - np.trace(gallery.confusion)
    assert len(gallery.labels) == min(MISTAKES, mistakes) > 5
    assert (gallery.labels != gallery.predicted).all()
    assert (np.diff(gallery.probability) <= 0).all()
    with h5py.File(data) as file:
        images, labels = file["test/images"][:], file["test/labels"][:]
    for image, label in zip(gallery.images, gallery.labels, strict=True):
        (row,) = np.flatnonzero((images == image).all(axis=(1, 2)))
        assert labels[row] == label
    assert gallery.weights.shape == (12, 8)
    assert gallery.classes == ("0", "1", "2")
    assert min(UNITS, 8) == 8


@pytest.mark.parallel([2, 4])
def test_split_models_keep_the_same(keep):
    size = MPI.COMM_WORLD.size
    grid = ("--tensor", 2) if size == 2 else ("--tensor", 2, "--pipe", 2)
    split, _ = keep(*grid)
    alone, _ = keep(name=f"alone-{MPI.COMM_WORLD.rank}", comm=MPI.COMM_SELF)
    np.testing.assert_array_equal(split.confusion, alone.confusion)
    np.testing.assert_array_equal(split.labels, alone.labels)
    np.testing.assert_allclose(split.probability, alone.probability, atol=1e-5)
    np.testing.assert_allclose(split.weights, alone.weights, atol=1e-5)


@pytest.mark.parallel([1, 2])
def test_without_a_report_nothing_is_kept(shared_path):
    world = Communicator(MPI.COMM_WORLD)
    data = write_image_set(shared_path / f"set-{world.rank}.h5")
    out = shared_path / "run"
    assert main(world, ["--data", str(data), "--out", str(out), "--steps", "1", "--no-report"]) == 0
    world.gather_text("")
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "config.toml", "log.txt", "metrics.jsonl"]


@pytest.mark.parallel([2])
def test_a_board_beside_the_metrics(shared_path):
    world = Communicator(MPI.COMM_WORLD)
    data = write_image_set(shared_path / f"set-{world.rank}.h5")
    out = shared_path / "run"
    assert main(world, ["--data", str(data), "--out", str(out), "--steps", "1", "--no-report", "--tensorboard"]) == 0
    world.gather_text("")
    assert len(list((out / "tensorboard").iterdir())) == 1
