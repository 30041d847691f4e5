"""Image sets: every layout that is taken, and a message that names the place for every file that is not."""

import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.data_parallel.evaluation import evaluation_rows
from mpi_parallel.data_parallel.loader import TrainingRows, class_count
from mpi_parallel.data_parallel.split import Split
from mpi_parallel.device import Host
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from tests.samples import SHAPE, images_and_labels, write_image_set, write_pile

ALONE = Communicator(MPI.COMM_SELF)


def opened(path, seed=0, comm=ALONE, **options):
    return open_image_set(DataOptions(data=str(path), **options), seed, comm)


def load(path, comm=ALONE, **options):
    """Everything that a run does with its file before it trains."""
    data = opened(path, comm=comm, **options)
    training = TrainingRows(data, 8, 0, comm, Host())
    held_out = [evaluation_rows(split, training.scaler, comm, Host()) for split in (data.validation, data.test)]
    return class_count(data, training, held_out, comm)


def everything(split):
    return split.read(range(len(split)))


class TestLayouts:
    def test_ours(self, tmp_path):
        data = opened(write_image_set(tmp_path / "set.h5", train=50, validation=7, test=9))
        for split, seed, n in ((data.train, 0, 50), (data.validation, 1, 7), (data.test, 2, 9)):
            images, labels = images_and_labels(n, seed)
            read_images, read_labels = everything(split)
            np.testing.assert_array_equal(read_images, images.reshape(n, -1))
            np.testing.assert_array_equal(read_labels, labels)
            assert (read_images.dtype, read_labels.dtype) == (np.uint8, np.int32)
        assert (data.shape, data.features, data.dtype) == (SHAPE, 12, np.uint8)
        assert data.classes is data.mean is data.std is None

    def test_no_rows_are_taken_from_train_unasked(self, tmp_path):
        data = opened(write_image_set(tmp_path / "set.h5", train=50, test=None))
        assert (len(data.train), data.validation, data.test) == (50, None, None)

    def test_an_empty_split_is_none(self, tmp_path):
        data = opened(write_image_set(tmp_path / "set.h5", validation=0, test=0))
        assert (data.validation, data.test) == (None, None)

    def test_attributes(self, tmp_path):
        mean, std = np.arange(12.0).reshape(SHAPE), np.full(SHAPE, 2.0)
        said = {"classes": ["cat", "dög", "eel"], "mean": mean, "std": std}
        data = opened(write_image_set(tmp_path / "set.h5", attributes=said))
        assert data.classes == ("cat", "dög", "eel")
        np.testing.assert_array_equal(data.mean, np.arange(12))
        np.testing.assert_array_equal(data.std, [2] * 12)

    def test_class_names_of_fixed_width(self, tmp_path):
        data = opened(write_image_set(tmp_path / "set.h5", attributes={"classes": np.array([b"a", b"bb", b"c"])}))
        assert data.classes == ("a", "bb", "c")

    def test_one_pile_is_split(self, tmp_path):
        path = write_pile(tmp_path / "pile.h5", rows=200)
        images, labels = images_and_labels(200)
        data = opened(path, seed=3)
        splits = data.train, data.validation, data.test
        assert [len(split) for split in splits] == [140, 20, 40]
        assert np.array_equal(np.sort(np.concatenate([split.rows for split in splits])), np.arange(200))
        for split in splits:
            read_images, read_labels = everything(split)
            np.testing.assert_array_equal(read_images, images.reshape(200, -1)[split.rows])
            np.testing.assert_array_equal(read_labels, labels[split.rows])

    def test_the_split_of_a_pile_follows_the_seed(self, tmp_path):
        path = write_pile(tmp_path / "pile.h5")
        one, again, other = (opened(path, seed=seed).test.rows for seed in (3, 3, 4))
        assert np.array_equal(one, again)
        assert not np.array_equal(one, other)

    def test_paths_of_a_foreign_file(self, tmp_path):
        path = write_pile(tmp_path / "foreign.h5", images="entry/data/frames", labels="entry/what")
        data = opened(path, images="/entry/data/frames", labels="/entry/what")
        assert [len(split) for split in (data.train, data.validation, data.test)] == [42, 6, 12]

    def test_asked_for_validation_comes_from_train(self, tmp_path):
        data = opened(write_image_set(tmp_path / "set.h5", train=50), validation=0.1)
        assert [len(split) for split in (data.train, data.validation, data.test)] == [45, 5, 20]
        rows = np.concatenate([data.train.rows, data.validation.rows])
        assert np.array_equal(np.sort(rows), np.arange(50))
        assert (data.validation.images, data.test.images) == ("train/images", "test/images")

    def test_validation_that_is_there_is_taken_before_what_is_asked_for(self, tmp_path):
        data = opened(write_image_set(tmp_path / "set.h5", train=50, validation=7), validation=0.5)
        assert (len(data.train), len(data.validation), data.validation.images) == (50, 7, "validation/images")

    @pytest.mark.parametrize("part", [range(0), range(17, 17), range(3, 20), range(42)])
    def test_part_of_listed_rows(self, tmp_path, part):
        train = opened(write_pile(tmp_path / "pile.h5")).train
        images, labels = train.read(part)
        rows = train.rows[part.start : part.stop]
        np.testing.assert_array_equal(images, images_and_labels(60)[0].reshape(60, -1)[rows])
        np.testing.assert_array_equal(labels, images_and_labels(60)[1][rows])
        assert [train.row(place) for place in part] == rows.tolist()

    def test_what_lies_between_distant_rows_is_neither_read_nor_held(self, tmp_path, monkeypatch):
        path, rows = tmp_path / "pile.h5", np.array([3, 4, 9, 500, 990, 999])
        with h5py.File(path, "w") as file:
            file["images"], file["labels"] = np.arange(1000 * 12).reshape(1000, *SHAPE), np.arange(1000) % 7
        split, spans = replace(opened(path).train, rows=rows, length=len(rows)), []
        monkeypatch.setattr("mpi_parallel.data_parallel.split.LISTED_BYTES", 10 * split.features * 8)  # ten rows
        load = Split.load
        monkeypatch.setattr(Split, "load", lambda *args: (spans.append(len(args[3])), load(*args))[1])
        images, labels = split.read(range(len(rows)))
        np.testing.assert_array_equal(images, np.arange(1000 * 12).reshape(1000, 12)[rows])
        np.testing.assert_array_equal(labels, rows % 7)
        assert spans == [7, 1, 10]  # not the 997 from the first to the last
        assert split.largest_label(range(len(rows))) == max(rows % 7)

    @pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "<i4", ">i8", "<f2", "<f4", ">f4", "<f8", ">f8"])
    def test_every_type_of_number(self, tmp_path, dtype):
        images, labels = np.arange(60 * 12).reshape(60, *SHAPE) % 100, np.arange(60) % 3
        with h5py.File(tmp_path / "pile.h5", "w") as file:
            file["images"] = images.astype(dtype)
            file["labels"] = labels.astype(dtype.replace("f", "i").replace("<i2", "<i2"))
        train = opened(tmp_path / "pile.h5").train
        read_images, read_labels = everything(train)
        np.testing.assert_array_equal(read_images, images.reshape(60, -1)[train.rows])
        np.testing.assert_array_equal(read_labels, labels[train.rows])
        assert read_images.dtype.isnative
        assert load(tmp_path / "pile.h5") == 3

    def test_compressed_chunks(self, tmp_path):
        images, labels = images_and_labels(50)
        with h5py.File(tmp_path / "set.h5", "w") as file:
            file.create_dataset("train/images", data=images, chunks=(7, *SHAPE), compression="gzip", shuffle=True)
            file["train/labels"] = labels
        np.testing.assert_array_equal(everything(opened(tmp_path / "set.h5").train)[0], images.reshape(50, -1))


def alter(name, values):
    """A change of a file: the dataset `name` now holds these values; None deletes it."""

    def change(file):
        del file[name]
        if values is not None:
            file[name] = values

    return change


def set_row(name, row, value):
    def change(file):
        values = file[name][:].astype(np.result_type(file[name].dtype, np.min_scalar_type(value)))
        values[row] = value
        alter(name, values)(file)

    return change


def attributes(**values):
    return lambda file: file.attrs.update(values)


IMAGES, LABELS = images_and_labels(60)
BAD = {
    "no images": (
        alter("train/images", None),
        "no dataset train/images; it has /test/images, /test/labels, /train/lab",
    ),
    "no labels": (alter("test/labels", None), "no dataset test/labels"),
    "a group for a dataset": (
        lambda file: [alter("train/images", None)(file), file.create_group("train/images")],
        "no da",
    ),
    "train is a dataset": (
        alter("train", IMAGES),
        "no dataset train/images; it has /test/images, /test/labels, /train",
    ),
    "no rows": (
        lambda file: [alter("train/images", IMAGES[:0])(file), alter("train/labels", LABELS[:0])(file)],
        "there are no training rows",
    ),
    "images of one dimension": (
        alter("train/images", IMAGES[:, 0, 0]),
        r"train/images is uint8 \(60,\); images are numb",
    ),
    "images of no pixels": (alter("train/images", IMAGES[:, :0]), r"train/images is uint8 \(60, 0, 4\)"),
    "one number for images": (alter("train/images", 5), r"train/images is int64 \(\)"),
    "no space for images": (alter("train/images", h5py.Empty("f4")), r"train/images is float32 None"),
    "images of text": (alter("train/images", np.full((60, 2), b"cat")), r"train/images is \|S3 \(60, 2\)"),
    "images of variable text": (alter("train/images", [["cat", "dog"]] * 60), r"train/images is object \(60, 2\)"),
    "complex images": (alter("train/images", IMAGES + 1j), r"train/images is complex128"),
    "labels of floats": (
        alter("train/labels", LABELS.astype("f4")),
        r"train/labels is float32 \(60,\); labels are whole",
    ),
    "labels of text": (alter("train/labels", ["cat"] * 60), r"train/labels is object \(60,\)"),
    "labels in a column": (alter("train/labels", LABELS[:, None]), r"train/labels is uint8 \(60, 1\)"),
    "one-hot labels": (alter("train/labels", np.eye(3, dtype=int)[LABELS]), r"train/labels is int64 \(60, 3\)"),
    "no space for labels": (alter("train/labels", h5py.Empty("i4")), r"train/labels is int32 None"),
    "fewer labels": (alter("train/labels", LABELS[:59]), "60 rows in train/images, but 59 in train/labels"),
    "fewer test labels": (alter("test/labels", LABELS[:19]), "20 rows in test/images, but 19 in test/labels"),
    "other shape in test": (
        alter("test/images", np.zeros((20, 4, 3), "u1")),
        r"images of /test/images are \(4, 3\), those of /train/images \(3, 4\)",
    ),
    "other type in test": (
        alter("test/images", np.zeros((20, 3, 4), "f4")),
        "images of /test/images are float32, those of /train/images uint8, and one standardisation cannot serve both",
    ),
    "a negative label": (set_row("train/labels", 41, -1), "train/labels row 41 is -1; labels are 0 to"),
    "a negative test label": (set_row("test/labels", 11, -7), "test/labels row 11 is -7; labels are 0 to"),
    "a label beyond int32": (set_row("train/labels", 41, 2**32 + 1), "train/labels row 41 is 4294967297"),
    "a label at the end of uint64": (
        set_row("train/labels", 41, 2**64 - 1),
        "train/labels row 41 is 18446744073709551615",
    ),
    "a label beyond the classes": (
        lambda file: [attributes(classes=["a", "b", "c"])(file), set_row("train/labels", 41, 3)(file)],
        "train/labels row 41 is 3; labels are 0 to 2",
    ),
    "a test label beyond the classes": (
        lambda file: [attributes(classes=["a", "b", "c"])(file), set_row("test/labels", 7, 200)(file)],
        "test/labels row 7 is 200; labels are 0 to 2",
    ),
    "a pixel that is no number": (
        lambda file: [
            alter("train/images", np.where(np.arange(60)[:, None, None] == 33, np.nan, IMAGES))(file),
            alter("test/images", IMAGES[:20].astype(float))(file),
        ],
        "train/images row 33 has a pixel that is not finite",
    ),
    "an infinite pixel": (
        lambda file: [
            alter("train/images", IMAGES.astype("f4"))(file),
            alter("test/images", np.where(np.arange(20)[:, None, None] == 3, -np.inf, IMAGES[:20]))(file),
        ],
        "test/images row 3 has a pixel that is not finite",
    ),
    "mean of another size": (attributes(mean=np.zeros(5), std=1.0), "attribute mean holds 5 numbers; expected 1 or 12"),
    "std of another size": (
        attributes(mean=0.0, std=np.ones((4, 4))),
        "attribute std holds 16 numbers; expected 1 or 12",
    ),
    "mean that is no number": (attributes(mean=np.nan, std=1.0), "attribute mean .* finite"),
    "std that is no number": (attributes(mean=0.0, std=[np.inf] * 12), "attribute std .* finite"),
    "negative std": (attributes(mean=0.0, std=-1.0), "attribute std .* not negative"),
    "mean of text": (attributes(mean="average", std=1.0), "attribute mean "),
    "no mean in mean": (attributes(mean=h5py.Empty("f8"), std=1.0), "attribute mean "),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_and_the_place_named(tmp_path, kind):
    change, message = BAD[kind]
    path = write_image_set(tmp_path / "set.h5")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_what_is_wrong_in_listed_rows_is_named_by_its_row_in_the_file(tmp_path):
    path = write_pile(tmp_path / "pile.h5")
    for name, value, complaint in (("labels", -3, "is -3"), ("images", np.nan, "has a pixel that is not finite")):
        write_pile(path)
        with h5py.File(path, "a") as file:
            set_row(name, 47, value)(file)
        with pytest.raises(InputError, match=f"{name} row 47 {complaint}"):
            load(path)


def test_neither_train_nor_images(tmp_path):
    path = write_pile(tmp_path / "foreign.h5", images="frames", labels="what")
    with pytest.raises(InputError, match="it has /frames, /what: name them with --images and --labels"):
        load(path)


def test_named_datasets_that_are_not_there(tmp_path):
    path = write_pile(tmp_path / "foreign.h5", images="frames", labels="what")
    with pytest.raises(InputError, match="there is no dataset /labels; it has /frames, /what"):
        load(path, images="/frames", labels="/labels")


@pytest.mark.parametrize("options", [{"images": "/frames"}, {"labels": "/what"}])
def test_one_of_two_named_datasets_is_not_passed_over(tmp_path, options):
    """The file has others of our layout."""
    path = write_image_set(tmp_path / "set.h5")
    with pytest.raises(InputError, match=r"--images and --labels name the two datasets .*: give both or none"):
        opened(path, **options)


def test_validation_that_leaves_nothing_to_train(tmp_path):
    path = write_image_set(tmp_path / "set.h5", train=3)
    with pytest.raises(InputError, match="there are no training rows"):
        load(path, validation=0.9)


class TestFilesThatCannotBeRead:
    def refused(self, path, message):
        with pytest.raises(InputError, match=message) as caught:
            load(path)
        assert str(path) in str(caught.value)

    def test_absent(self, tmp_path):
        self.refused(tmp_path / "absent.h5", "no such file")

    def test_a_folder(self, tmp_path):
        self.refused(tmp_path, "not an HDF5 file that can be read")

    @pytest.mark.parametrize(
        "content", [b"", b"label,pixel\n1,2\n", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(99)]
    )
    def test_not_hdf5(self, tmp_path, content):
        (tmp_path / "set.h5").write_bytes(content)
        self.refused(tmp_path / "set.h5", "not an HDF5 file that can be read")

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_truncated(self, tmp_path, share):
        path = write_image_set(tmp_path / "set.h5", train=500)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        self.refused(path, "not an HDF5 file that can be read, or a damaged one")

    def test_damaged_within_a_compressed_chunk(self, tmp_path):
        path = write_image_set(tmp_path / "set.h5")
        with h5py.File(path, "a") as file:
            del file["train/images"]
            images = file.create_dataset("train/images", data=IMAGES, chunks=IMAGES.shape, compression="gzip")
            offset, size = images.id.get_chunk_info(0).byte_offset, images.id.get_chunk_info(0).size
        content = bytearray(path.read_bytes())
        content[offset : offset + size] = b"\xff" * size
        path.write_bytes(content)
        self.refused(path, "damaged")


@pytest.mark.parallel([2, 3, 4])
def test_fewer_rows_than_ranks(shared_path):
    comm = Communicator(MPI.COMM_WORLD)
    path = shared_path / f"set-{comm.rank}.h5"  # each its own: no rank reads before it is there
    write_image_set(path, train=comm.size - 1)
    rows, ranks = comm.size - 1, comm.size
    with pytest.raises(InputError, match=re.escape(f"{path}: {rows} training rows for {ranks} ranks")):
        load(path, comm=comm)


@pytest.mark.parallel([1, 2, 3, 4])
def test_all_ranks_see_the_same_splits(shared_path):
    comm = Communicator(MPI.COMM_WORLD)
    path = shared_path / f"pile-{comm.rank}.h5"
    together, alone = opened(write_pile(path), comm=comm), opened(path)
    for name in ("train", "validation", "test"):
        assert np.array_equal(getattr(together, name).rows, getattr(alone, name).rows)


def test_a_pile_is_shared_out_in_one_way_only(tmp_path):
    path = write_pile(tmp_path / "pile.h5")
    with pytest.raises(InputError, match=r"--validation 0.3: .*pile.h5 has no splits"):
        open_image_set(DataOptions(data=str(path), validation=0.3), 0, ALONE)
