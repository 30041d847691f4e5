"""export as a command; what the files hold is tested with their formats."""

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel import export
from mpi_parallel.exchange import keras_file
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from tests.launch import launch
from tests.samples import images_and_labels
from tests.trained import logits_of, some_network, write_network


def run(*arguments):
    return export.main(Communicator(MPI.COMM_SELF), [str(word) for word in arguments])


def test_one_rank_writes_and_all_end_well(tmp_path):
    source = write_network(tmp_path / "a.weights.h5")
    ended = launch(2, "-m", "mpi_parallel.export", "--checkpoint", source, "--to", tmp_path / "b.onnx")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"{tmp_path / 'b.onnx'}: 12 - 9 - 3; takes raw images of 3 x 4, gives logits\n"


def test_raw_weights_take_raw_pixels(tmp_path):
    source = write_network(tmp_path / "a.weights.h5")
    assert run("--checkpoint", source, "--to", tmp_path / "raw.weights.h5", "--raw") == 0
    raw, images = keras_file.read(tmp_path / "raw.weights.h5"), images_and_labels(30)[0]
    assert raw.mean is None
    assert np.allclose(logits_of(raw, images), logits_of(some_network(), images), atol=1e-4)


def test_an_unknown_format(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.onnx"):
        run("--checkpoint", write_network(tmp_path / "a.weights.h5"), "--to", tmp_path / "b.pt")
