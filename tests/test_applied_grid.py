"""evaluate and predict by a network that is split over the ranks: what one rank says, and less memory a rank."""

import json

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from PIL import Image

from mpi_parallel import evaluate, predict
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from tests.launch import launch
from tests.samples import write_image_set
from tests.trained import FEATURES, evaluate_by, some_network, write_network

WIDTHS = FEATURES, 11, 7, 9, 3
GRIDS = {2: ["--tensor 2", "--pipe 2"], 4: ["--tensor 2", "--pipe 2", "--pipe 4", "--tensor 2 --pipe 2"]}


def both(folder, comm, data, *options):
    """(figures of evaluate, label, probabilities of predict) on these ranks."""
    world = Communicator(comm)
    told, to = folder / f"told-{comm.size}.json", folder / f"to-{comm.size}.h5"
    words = [str(word) for word in ("--checkpoint", folder / "n.weights.h5", "--data", data, *options)]
    assert evaluate.main(world, [*words, "--json", str(told)]) == 0
    assert predict.main(world, [*words, "--to", str(to)]) == 0
    world.meet()
    with h5py.File(to) as file:
        return json.loads(told.read_text()), file["label"][:], file["probabilities"][:]


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("memory", ["1G", "1K"], ids=["resident", "streamed"])
def test_a_split_network_says_what_it_says_on_one_rank(shared_path, monkeypatch, memory):
    evaluate_by(monkeypatch, 16)
    comm, data = MPI.COMM_WORLD, shared_path / "set.h5"
    if comm.rank == 0:
        write_image_set(data, train=30, test=150)
        write_network(shared_path / "n.weights.h5", some_network(WIDTHS))
    comm.Barrier()
    for grid in GRIDS[comm.size]:
        figures, label, probabilities = both(shared_path, comm, data, "--memory", memory, *grid.split())
        if comm.rank == 0:
            expected, labels, theirs = both(shared_path, MPI.COMM_SELF, data)
            assert figures.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-6)
            assert figures == expected
            assert (label == labels).all()
            np.testing.assert_allclose(probabilities, theirs, rtol=1e-5, atol=1e-7)
        comm.Barrier()


@pytest.mark.parallel([2, 4])
def test_pictures_are_looked_at_by_the_first_stage(shared_path):
    comm, folder = MPI.COMM_WORLD, shared_path / "pictures"
    if comm.rank == 0:
        folder.mkdir()
        rng = np.random.default_rng(4)
        for number in range(9):
            Image.fromarray(rng.integers(0, 256, (3, 4), np.uint8)).save(folder / f"{number}.png")
        write_network(shared_path / "n.weights.h5", some_network(WIDTHS))
    comm.Barrier()
    words = [str(word) for word in ("--checkpoint", shared_path / "n.weights.h5", "--data", folder, "--to")]
    found = []
    for name, world, grid in (("split.h5", comm, ["--pipe", "2"]), (f"alone-{comm.rank}.h5", MPI.COMM_SELF, [])):
        assert predict.main(Communicator(world), [*words, str(shared_path / name), *grid]) == 0
        comm.Barrier()
        with h5py.File(shared_path / name) as file:
            found.append(file["probabilities"][:])
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parallel([2, 3])
def test_ranks_that_do_not_divide(tmp_path):
    world = Communicator(MPI.COMM_WORLD)
    words = ("--checkpoint", tmp_path / "none", "--data", tmp_path, "--tensor", 2, "--pipe", 2)
    with pytest.raises(InputError, match=r"ranks do not divide into 2 stages \(--pipe\) x 2 slices \(--tensor\)"):
        evaluate.main(world, [str(word) for word in words])


PEAK = """
import resource, sys
from mpi4py import MPI
from mpi_parallel import evaluate
from mpi_parallel.mpi.communicator import Communicator
evaluate.main(Communicator(MPI.COMM_WORLD), sys.argv[1:])
peaks = MPI.COMM_WORLD.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
if peaks:
    print("peak", max(peaks))
"""


def test_a_rank_holds_its_part_of_the_network_alone(tmp_path):
    """64 MiB of weights: with two slices or stages each rank has half of them, and never more on the way."""
    data = write_image_set(tmp_path / "set.h5")
    run = tmp_path / "run"
    train = ("--data", data, "--hidden", 2896, 2896, 2896, "--epochs", 0, "--out", run, "--optimizer", "sgd")
    assert launch(2, "-m", "mpi_parallel.train", *train, "--progress", "none", "--no-report").returncode == 0
    peaks = []
    for grid in ((), ("--tensor", 2), ("--pipe", 2)):
        ended = launch(2, "-c", PEAK, "--checkpoint", run, "--data", data, *grid)
        assert (ended.returncode, ended.stderr) == (0, "")
        peaks.append(int(ended.stdout.split()[-1]) / 1024)
    whole, sliced, staged = peaks
    assert whole - sliced > 16, peaks
    assert whole - staged > 16, peaks
