"""Files made to deceive: each is refused with its name, and before any memory is spent."""

import os
import tracemalloc

import h5py
import numpy as np
import pytest

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel import trust
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.options import InputError
from tests.data_parallel.test_conversion import run
from tests.once import once

pytestmark = once


class Alone:
    rank, size = 0, 1

    def broadcast(self, array):
        return array


def train_on(path, **options):
    return open_image_set(DataOptions(data=str(path), **options), 0, Alone())


def refused(path, message: str, allowed: bool = True) -> None:
    """Training and converting both refuse the file, at no cost; where that is `allowed`, the option opens it."""
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        train_on(path)
    with pytest.raises(InputError, match=message):
        run(path, "--to", path.parent / "out.h5")
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    if allowed:
        train_on(path, allow_external=True)


@pytest.fixture
def good(tmp_path):
    """A good file in another folder."""
    (tmp_path / "elsewhere").mkdir()
    with h5py.File(tmp_path / "elsewhere" / "good.h5", "w") as file:
        file["train/images"], file["train/labels"] = np.ones((20, 3, 3), np.uint8), np.arange(20) % 2
    return tmp_path / "elsewhere" / "good.h5"


def make(path, images=None):
    """A file whose images are made by a function, and whose labels are plain."""
    with h5py.File(path, "w") as file:
        file["train/labels"] = np.arange(20) % 2
        if images:
            images(file)
    return path


@pytest.mark.parametrize("link", ["train", "train/images"])
def test_links_to_other_files(tmp_path, good, link):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        if link != "train":
            file["train/labels"] = np.arange(20) % 2
        file[link] = h5py.ExternalLink("elsewhere/good.h5", link)
    refused(path, r"a\.h5: .*train.* is a link to another file, elsewhere/good\.h5")


def test_a_soft_link_to_a_link_to_another_file(tmp_path, good):
    def images(file):
        file["away"] = h5py.ExternalLink("elsewhere/good.h5", "train")
        file["train/images"] = h5py.SoftLink("/away/images")

    refused(make(tmp_path / "a.h5", images), "is a link to another file")


def test_soft_links_within_the_file_are_fine_and_circles_are_not(tmp_path):
    def images(file):
        file["here"] = np.zeros((20, 3, 3), np.uint8)
        file["train/images"] = h5py.SoftLink("/here")

    train_on(make(tmp_path / "a.h5", images))
    circle = make(tmp_path / "b.h5", lambda file: file.__setitem__("train/images", h5py.SoftLink("/train/images")))
    refused(circle, "a link to a link", allowed=False)


def test_images_that_are_another_files_bytes(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(180))
    place = [(str(tmp_path / "secret"), 0, 180)]
    path = make(tmp_path / "a.h5", lambda f: f.create_dataset("train/images", (20, 3, 3), np.uint8, external=place))
    refused(path, r"/train/images is stored in another file, .*secret")


def virtual(source: str, name: str = "train/images"):
    def images(file):
        layout = h5py.VirtualLayout((20, 3, 3), np.uint8)
        layout[:] = h5py.VirtualSource(source, name, (20, 3, 3))
        file.create_virtual_dataset("train/images", layout)

    return images


def test_virtual_rows_from_elsewhere_and_from_beside(tmp_path, good):
    refused(
        make(tmp_path / "a.h5", virtual("elsewhere/good.h5")), "takes rows from elsewhere/good.h5, which is not beside"
    )
    refused(make(tmp_path / "b.h5", virtual(str(good))), "which is not beside the file")
    train_on(make(good.parent / "beside.h5", virtual("good.h5")))
    (tmp_path / "good.h5").symlink_to(good)
    refused(make(tmp_path / "c.h5", virtual("good.h5")), "which is not beside the file")


def test_virtual_rows_that_are_not_there(tmp_path, good):
    refused(make(tmp_path / "a.h5", virtual("gone.h5")), "takes rows from gone.h5, which is not there", allowed=False)
    path = make(good.parent / "b.h5", virtual("good.h5", "other"))
    refused(path, "good.h5: other, which is not there", allowed=False)
    with h5py.File(good, "w") as file:
        file["train/images"] = np.ones((19, 3, 3), np.uint8)
    path = make(good.parent / "c.h5", virtual("good.h5"))
    refused(path, r"takes 180 numbers .* which is \(19, 3, 3\)", allowed=False)


def test_virtual_rows_without_end(tmp_path):
    """As many files as there happen to be, of a name with a number in it."""

    def images(file):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        space = h5py.h5s.create_simple((20, 3, 3), (h5py.h5s.UNLIMITED, 3, 3))
        whole = h5py.h5s.create_simple((20, 3, 3), (h5py.h5s.UNLIMITED, 3, 3))
        space.select_hyperslab((0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), (10, 3, 3), (10, 3, 3))
        properties.set_virtual(space, b"part-%b.h5", b"x", h5py.h5s.create_simple((10, 3, 3)))
        h5py.h5d.create(file["train"].id, b"images", h5py.h5t.NATIVE_UINT8, whole, properties)

    refused(make(tmp_path / "a.h5", images), r"/train/images takes rows without end from part-%b\.h5", allowed=False)


def test_virtual_rows_of_what_is_no_hdf5_file(tmp_path):
    (tmp_path / "text.h5").write_text("hello")
    message = r"a\.h5: /train/images takes rows from .*text\.h5, which is no HDF5 file"
    refused(make(tmp_path / "a.h5", virtual("text.h5")), message, allowed=False)


def test_virtual_rows_of_several_whole_files(tmp_path):
    for number in range(2):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["x"] = np.full((10, 3, 3), number, np.uint8)

    def images(file):
        layout = h5py.VirtualLayout((20, 3, 3), np.uint8)
        for number in range(2):
            layout[10 * number : 10 * number + 10] = h5py.VirtualSource(f"{number}.h5", "x", (10, 3, 3))
        file.create_virtual_dataset("train/images", layout)

    assert train_on(make(tmp_path / "a.h5", images)).train.read(range(9, 11))[0].tolist() == [[0] * 9, [1] * 9]


def test_a_part_that_itself_looks_elsewhere(tmp_path, good):
    make(tmp_path / "part.h5", virtual("elsewhere/good.h5"))
    refused(make(tmp_path / "a.h5", virtual("part.h5")), r"part\.h5: /train/images takes rows from elsewhere/good\.h5")


def huge(**options):
    def images(file):
        del file["train/labels"]
        file.create_dataset("train/images", (10**9, 1000, 1000), np.uint8, **options)
        file.create_dataset("train/labels", (10**9,), np.uint8, chunks=(1000,))

    return images


@pytest.mark.parametrize("options", [{"chunks": (1, 1000, 1000)}, {"chunks": (1, 1000, 1000), "compression": "gzip"}])
def test_promises_of_petabytes(tmp_path, options):
    refused(
        make(tmp_path / "a.h5", huge(**options)), r"promises \(1000000000, 1000, 1000\) of uint8.* but 0 are stored"
    )


def test_a_bomb(tmp_path):
    def images(file):
        file.create_dataset(
            "train/images", data=np.zeros((20, 2000, 2000), np.uint8), compression=9, chunks=(1, 2000, 2000)
        )

    refused(make(tmp_path / "a.h5", images), "promises .* 80,000,000 bytes, but [0-9,]+ are stored")


def test_chunks_of_gigabytes(tmp_path):
    def images(file):
        file.create_dataset("train/images", (20, 2**16, 2**15), np.uint8, chunks=(1, 2**16, 2**15))
        file["train/images"].id.write_direct_chunk((0, 0, 0), bytes(1))

    refused(make(tmp_path / "a.h5", images), "promises|chunks of", allowed=False)


def test_a_filter_that_is_not_installed(tmp_path, monkeypatch):
    path = make(
        tmp_path / "a.h5",
        lambda file: file.create_dataset("train/images", data=np.zeros((20, 3, 3), np.uint8), compression="lzf"),
    )
    monkeypatch.setattr(trust.h5py.h5z, "filter_avail", lambda code: False)
    refused(path, r"/train/images is packed with lzf \(HDF5 filter 32000\), which is not installed", allowed=False)


@pytest.mark.parametrize("content", [b"", b"label,a,b\n1,2,3\n", os.urandom(3000)])
def test_what_is_no_hdf5_file(tmp_path, content):
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(InputError, match="not an HDF5 file"):
        train_on(tmp_path / "a.h5")


def test_a_truncated_file(tmp_path, good):
    whole = good.read_bytes()
    for size in (100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.h5").write_bytes(whole[:size])
        for call in (train_on, lambda path: run(path, "--to", tmp_path / "b.h5")):
            with pytest.raises(InputError, match=r"a\.h5"):
                call(tmp_path / "a.h5")


def test_labels_that_are_floats(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"] = np.zeros((4, 3, 3)), np.zeros(4)
    with pytest.raises(InputError, match="labels is float64"):
        train_on(tmp_path / "a.h5")
