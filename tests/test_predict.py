"""predict: in the input's order, the same bits on any number of ranks, with or without labels."""

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from PIL import Image

from mpi_parallel import predict
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from tests.samples import images_and_labels, write_image_set
from tests.trained import NAMES, evaluate_by, logits_of, some_network, write_network


def predicted(folder, comm, data, *options, name="out.h5"):
    """(index, label, probabilities, attributes) of a prediction on these ranks."""
    world = Communicator(comm)
    arguments = ("--checkpoint", folder / "net.weights.h5", "--data", data, "--to", folder / name, *options)
    if comm.rank == 0:
        write_network(folder / "net.weights.h5")
    world.meet()
    assert predict.main(world, [str(word) for word in arguments]) == 0
    world.meet()
    with h5py.File(folder / name) as file:
        return *(file[key][:] for key in ("index", "label", "probabilities")), dict(file.attrs)


def write_unlabelled(path, rows=150, name="images"):
    with h5py.File(path, "w") as file:
        file[name] = images_and_labels(rows)[0]
    return path


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("memory", ["1G", "1K"], ids=["resident", "streamed"])
def test_rows_keep_their_order_and_are_the_same_bits_on_any_ranks(shared_path, monkeypatch, memory):
    evaluate_by(monkeypatch, 16)
    comm, data = MPI.COMM_WORLD, shared_path / "rows.h5"
    if comm.rank == 0:
        write_unlabelled(data)
    index, label, probabilities, facts = predicted(shared_path, comm, data, "--memory", memory)
    z = logits_of(some_network(), images_and_labels(150)[0])
    expected = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert index.tolist() == list(range(150))
    assert (label == expected.argmax(axis=1)).all()
    assert np.abs(probabilities - expected).max() < 1e-5
    assert (index.dtype, label.dtype, probabilities.dtype) == (np.int64, np.int32, np.float32)
    assert (facts["source"], facts["images"]) == (str(data), "images")
    assert facts["classes"].tolist() == list(NAMES)
    assert len(facts["weights_sha256"]) == 64
    if comm.rank == 0:
        alone = predicted(shared_path, MPI.COMM_SELF, data, name="alone.h5")
        assert (alone[2] == probabilities).all()
        assert {path.suffix for path in shared_path.iterdir()} == {".h5"}  # nothing unfinished is left


def test_a_file_with_splits_gives_its_test_rows_unless_told(tmp_path):
    data = write_image_set(tmp_path / "set.h5", train=60, test=20)
    assert len(predicted(tmp_path, MPI.COMM_SELF, data)[0]) == 20
    assert len(predicted(tmp_path, MPI.COMM_SELF, data, "--split", "train")[0]) == 60


def test_images_by_their_path(tmp_path):
    data = write_unlabelled(tmp_path / "rows.h5", 40, "entry/data")
    assert len(predicted(tmp_path, MPI.COMM_SELF, data, "--images", "/entry/data")[0]) == 40


@pytest.mark.parallel([1, 2])
def test_a_folder_of_pictures(shared_path, monkeypatch):
    """Made grey and as large as the network wants them; `file` has their names."""
    evaluate_by(monkeypatch, 4)
    images, folder = images_and_labels(11)[0], shared_path / "pictures"
    if MPI.COMM_WORLD.rank == 0:
        (folder / "more").mkdir(parents=True)
        for number, image in enumerate(images):
            picture = Image.fromarray(image)
            picture = picture.resize((8, 6), Image.Resampling.NEAREST) if number % 2 else picture.convert("RGB")
            picture.save((folder / "more" if number > 8 else folder) / f"{number:02}.png")
        (folder / "notes.txt").write_text("no picture")
        (folder / ".trash").mkdir()
        (folder / ".trash" / "00.png").write_text("hidden, as those beside pictures that macOS leaves")
        (folder / "._00.png").write_text("no picture")
    _, label, _, _ = predicted(shared_path, MPI.COMM_WORLD, folder)
    with h5py.File(shared_path / "out.h5") as file:
        assert file["file"].asstr()[:].tolist() == [f"{n:02}.png" for n in range(9)] + ["more/09.png", "more/10.png"]
    assert (label[::2] == logits_of(some_network(), images[::2]).argmax(axis=1)).all()


def test_a_folder_without_pictures_and_one_with_a_broken_one(tmp_path):
    (tmp_path / "folder").mkdir()
    refused(tmp_path, "there are no pictures", tmp_path / "folder")
    (tmp_path / "folder" / "a.png").write_bytes(b"nonsense")
    refused(tmp_path, r"a\.png cannot be decoded: .*; move it out of the folder", tmp_path / "folder")


def refused(tmp_path, message, data, to=None):
    checkpoint = write_network(tmp_path / "net.weights.h5")
    arguments = ("--checkpoint", checkpoint, "--data", data, "--to", to or tmp_path / "out.h5")
    with pytest.raises(InputError, match=message):
        predict.main(Communicator(MPI.COMM_SELF), [str(word) for word in arguments])
    assert not list(tmp_path.glob("out*"))


def test_a_file_without_images(tmp_path):
    message = r"there are no images at images or test/images; it has /other: name them with --split or --images"
    refused(tmp_path, message, write_unlabelled(tmp_path / "rows.h5", 5, "other"))


def test_a_file_without_rows(tmp_path):
    refused(tmp_path, "there are no rows in images", write_unlabelled(tmp_path / "rows.h5", 0))


def test_a_bad_pixel_leaves_nothing_behind(tmp_path):
    images = images_and_labels(40)[0].astype(np.float32)
    images[30, 1, 2] = np.inf
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["images"] = images
    refused(tmp_path, "images row 30 has a pixel that is not finite", tmp_path / "rows.h5")


def test_a_folder_that_is_not_there(tmp_path):
    data = write_unlabelled(tmp_path / "rows.h5", 5)
    refused(tmp_path, "there is no folder", data, tmp_path / "absent" / "out.h5")


def test_what_is_read_is_not_overwritten(tmp_path):
    data = write_unlabelled(tmp_path / "rows.h5", 5)
    refused(tmp_path, "is what is read, and would be overwritten", data, data)
    assert data.exists()
