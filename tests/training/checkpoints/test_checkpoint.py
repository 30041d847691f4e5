"""The file: what it holds, and that damage is found."""

import shutil

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.mlp import weights_sha256
from mpi_parallel.options import InputError
from mpi_parallel.train import main
from mpi_parallel.training.checkpoints.checkpoint import CheckpointFile, read_checkpoint
from tests.samples import write_image_set


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A checkpoint of a run of one epoch."""
    folder = tmp_path_factory.mktemp("kept")
    data = write_image_set(folder / "set.h5", 60, 12, 20, attributes={"classes": ["ant", "bee", "cow"]})
    given = "--hidden 8 --batch-size 16 --epochs 1 --progress none --no-report".split()
    assert main(Communicator(MPI.COMM_SELF), ["--data", str(data), "--out", str(folder / "run"), *given]) == 0
    return folder / "run" / "checkpoints" / "step-00000004.h5"


@pytest.fixture
def damaged(kept, tmp_path):
    """A copy to be damaged."""
    return shutil.copy(kept, tmp_path / "copy.h5")


def test_what_it_holds(kept):
    read = read_checkpoint(kept)
    assert {name: array.shape for name, array in read.weights.items()} == {
        "W0": (12, 8), "b0": (8,), "W1": (8, 3), "b1": (3,),
    }  # fmt: skip
    assert (read.widths, read.classes, read.image_shape) == ((12, 8, 3), ("ant", "bee", "cow"), (3, 4))
    assert read.mean.shape == read.std.shape == (12,)
    assert read.config["batch"]["batch_size"] == 16
    facts = read.facts
    assert (facts["step"], facts["epochs"], facts["samples"], facts["position"]) == (4, 1, 60, 0)
    assert {"versions", "hosts", "job", "git", "seed", "data", "loss_scale", "written"} <= set(facts)
    with CheckpointFile(kept) as file:
        assert next(name for name in file.arrays if name.startswith("optimizer/")) == "optimizer/m/W0"
        assert file.read("optimizer/v/W1").shape == (8, 3)


def test_other_programs_read_it(kept):
    """As any HDF5: no filters, no pickle, plain arrays."""
    with h5py.File(kept) as file:
        arrays = [file[f"weights/{name}"][:] for name in ("W0", "b0", "W1", "b1")]
        assert b'"step": 4' in file["facts"][0]
    assert weights_sha256(arrays) == weights_sha256(read_checkpoint(kept).weights.values())


def contents(read):
    return str(read.facts), {name: array.tobytes() for name, array in read.weights.items()}, read.mean.tobytes()


def test_a_flipped_bit_is_found_or_does_no_harm(kept, damaged):
    whole, expected = bytearray(kept.read_bytes()), contents(read_checkpoint(kept))
    complaints = []
    for place in range(0, len(whole), 97):
        whole[place] ^= 1 << (place % 8)
        damaged.write_bytes(whole)
        whole[place] ^= 1 << (place % 8)
        try:
            assert contents(read_checkpoint(damaged)) == expected
        except InputError as error:
            complaints.append(str(error))
    assert all(str(damaged) in complaint for complaint in complaints)
    assert len(complaints) > 0.5 * len(whole) / 97  # the rest lies between arrays, or is what HDF5 keeps free


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_one_is_found(kept, damaged, share):
    whole = kept.read_bytes()
    damaged.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="damaged"):
        read_checkpoint(damaged)


def point_elsewhere(file):
    """The weights are those of another file."""
    del file["weights/W0"]
    file["weights/W0"] = h5py.ExternalLink("/etc/other.h5", "weights/W0")


def store_elsewhere(file):
    del file["weights/W0"]
    file.create_dataset("weights/W0", (12, 8), "f4", external=[("/etc/passwd", 0, 384)])


def promise_too_much(file):
    """A petabyte that is not there."""
    del file["weights/W0"]
    file.create_dataset("weights/W0", (2**24, 2**24), "f4", chunks=(1024, 1024))


def be_another_shape(file):
    values = file["weights/W0"][:]
    del file["weights/W0"]
    file["weights/W0"] = values.T


def lack_an_array(file):
    del file["optimizer/m/b1"]


@pytest.mark.parametrize("harm", [point_elsewhere, store_elsewhere, promise_too_much, be_another_shape, lack_an_array])
def test_hostile_ones_are_refused(damaged, harm):
    with h5py.File(damaged, "r+") as file:
        harm(file)
    with pytest.raises(InputError, match=str(damaged)):
        read_checkpoint(damaged)


def test_what_is_no_checkpoint(tmp_path):
    text, other = tmp_path / "text.h5", write_image_set(tmp_path / "other.h5")
    text.write_text("weights")
    for path, message in (
        (tmp_path / "none.h5", "no such"),
        (text, "no checkpoint"),
        (other, "no checkpoint of mpi_par"),
    ):
        with pytest.raises(InputError, match=message):
            read_checkpoint(path)


def test_a_checkpoint_of_other_numbers_than_its_checksums(damaged):
    with h5py.File(damaged, "r+") as file:
        file["weights/b0"][3] = np.float32(7)
    with pytest.raises(InputError, match="weights/b0 is not what was written"):
        read_checkpoint(damaged)
