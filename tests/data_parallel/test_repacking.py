"""inspect and repack: what they say is so, and what they write reads as before, on any number of ranks."""

import errno

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from PIL import Image

from mpi_parallel import inspect, repack
from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel import repacking
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.data_parallel.loader import TrainingRows
from mpi_parallel.data_parallel.memory import Budget
from mpi_parallel.data_parallel.split import Split
from mpi_parallel.data_parallel.survey import epoch_cost
from mpi_parallel.device import Host
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block
from mpi_parallel.options import InputError
from tests.data_parallel.test_conversion import RANKS, content, on_rank_0, pixels, same


def make(path, dtype="u1", **options) -> None:
    images, labels = pixels(200)
    with h5py.File(path, "w") as file:
        for name, rows in (("train", slice(0, 150)), ("test", slice(150, 200))):
            file.create_dataset(f"{name}/images", data=images[rows].reshape(-1, 3, 4).astype(dtype), **options)
            file[f"{name}/labels"] = labels[rows]
        file.attrs["classes"], file.attrs["mean"] = ["ant", "bee", "owl"], 3.5


def run(command, *arguments) -> None:
    world = Communicator(MPI.COMM_WORLD)
    assert command.main(world, [str(word) for word in arguments]) == 0
    world.maximum(0)


@RANKS
@pytest.mark.parametrize("filter_", ["none", "gzip", "lzf"])
def test_repacked_files_read_the_same(shared_path, monkeypatch, filter_):
    monkeypatch.setattr(repacking, "UNIT", 100)
    old, new, back = (shared_path / name for name in ("old.h5", "new.h5", "back.h5"))
    on_rank_0(lambda: make(old, chunks=(13, 3, 4), compression="gzip"))
    run(repack, old, "--to", new, "--filter", filter_, *["--chunk", 7] * (filter_ != "none"))
    assert same(content(old), content(new))
    with h5py.File(new) as file:
        assert file["train/images"].chunks == (None if filter_ == "none" else (7, 3, 4))
        assert file["train/images"].compression == (None if filter_ == "none" else filter_)
    run(repack, new, "--to", back)
    assert same(content(old), content(back))
    assert not list(shared_path.glob("*packed*")) and not list(shared_path.glob("*unfinished*"))


@RANKS
def test_whole_numbers_become_bytes_and_fractions_do_not(shared_path):
    on_rank_0(lambda: make(shared_path / "old.h5", ">f8"))
    run(repack, shared_path / "old.h5", "--to", shared_path / "new.h5")
    assert content(shared_path / "new.h5")["train/images"].dtype == np.uint8

    def spoil() -> None:
        with h5py.File(shared_path / "old.h5", "r+") as file:
            file["test/images"][49, 2, 3] = 0.5

    on_rank_0(spoil)
    run(repack, shared_path / "old.h5", "--to", shared_path / "new.h5")
    assert content(shared_path / "new.h5")["train/images"].dtype == np.dtype("<f8")
    run(repack, shared_path / "old.h5", "--to", shared_path / "new.h5", "--dtype", "float32")
    assert content(shared_path / "new.h5")["test/images"][49, 2, 3] == np.float32(0.5)


@RANKS
@pytest.mark.parametrize("options", [[], ["--dtype", "keep"], ["--filter", "gzip"]])
@pytest.mark.parametrize("kinds", [("i2", "i4"), ("u1", "u4"), ("f4", "f8")])
def test_splits_of_different_types_keep_their_numbers(shared_path, kinds, options):
    """One type for all would wrap the large numbers of the second split, or round them."""
    old, new = shared_path / "old.h5", shared_path / "new.h5"

    def mix() -> None:
        make(old, kinds[0])
        with h5py.File(old, "r+") as file:
            images = file["test/images"][...]
            del file["test/images"]
            file["test/images"] = (images / 7 * 100_000).astype(kinds[1])

    on_rank_0(mix)
    run(repack, old, "--to", new, *options)
    assert same(content(old), content(new))


def test_what_does_not_read_as_written_is_not_kept(tmp_path, monkeypatch):
    make(tmp_path / "old.h5")

    def write_wrong(self, offset, array):
        self._file.Write_at(offset, array.view(np.uint8).reshape(-1) ^ 1)

    monkeypatch.setattr("mpi_parallel.mpi.files.SharedFile.write", write_wrong)
    with pytest.raises(InputError, match="train/images from row 0 on does not read as it was written"):
        run(repack, tmp_path / "old.h5", "--to", tmp_path / "new.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["old.h5"]


@pytest.mark.parametrize(("number", "dtype"), [(0.5, "uint8"), (-1, "uint16"), (70_000, "float16")])
def test_repack_refuses_a_type_that_loses_something(tmp_path, number, dtype):
    make(tmp_path / "old.h5", "f4")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        file["test/images"][17, 0, 0] = number
    with pytest.raises(InputError, match=f"test/images row 17 has a number that {dtype} does not hold"):
        run(repack, tmp_path / "old.h5", "--to", tmp_path / "new.h5", "--dtype", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["old.h5"]


def test_repack_tells_what_it_does_not_copy(tmp_path, capsys):
    make(tmp_path / "old.h5")
    run(repack, tmp_path / "old.h5", "--to", tmp_path / "new.h5")
    assert "not copied" not in capsys.readouterr().out
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        file["train/ids"], file["notes/more"] = np.arange(150), 3
    run(repack, tmp_path / "old.h5", "--to", tmp_path / "new.h5")
    assert "not copied, as no training reads it: notes/more, train/ids\n" in capsys.readouterr().out


def test_repack_refuses_what_is_not_ours(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["pics"] = np.zeros((3, 2))
    with pytest.raises(InputError, match=r"neither train/images nor images: .*convert"):
        run(repack, tmp_path / "a.h5", "--to", tmp_path / "b.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"] = np.zeros((3, 0, 2)), np.zeros(3, np.uint8)
    with pytest.raises(InputError, match=r"images is float64 \(3, 0, 2\), not numbers"):
        run(repack, tmp_path / "a.h5", "--to", tmp_path / "b.h5")


def test_inspect_tells_what_is_there(tmp_path, capsys):
    make(tmp_path / "a.h5", chunks=(13, 3, 4), compression="gzip")
    run(inspect, tmp_path / "a.h5", "--ranks", 3, "--shards", 4, "--contact-sheet", tmp_path / "sheet.png")
    told = capsys.readouterr().out
    assert f"sheet       {tmp_path / 'sheet.png'}: a row of images for each class" in told
    _, labels = pixels(200)
    counts = np.bincount(labels[:150])
    assert "images of 3 x 4 uint8, 12 features" in told
    assert "train       150 rows; chunks of 13 x 3 x 4 (156 bytes), deflate; " in told
    assert f"classes: ant {counts[0]}, bee {counts[1]}, owl {counts[2]}" in told
    assert "moments     none in the file" in told
    # 12 chunks; the edges of the shards at rows 38, 76 and 113 each cut one.
    assert f"of train, streamed: 4 reads, {15 * 156:,} bytes, {3 * 156} of these twice (20.0%); up to 75 rows" in told
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (480, 144)


@pytest.mark.parametrize(("shape", "told"), [((3, 8, 8), True), ((8, 8, 3), False), ((1, 4, 3), False)])
def test_inspect_tells_of_colours_that_come_first(tmp_path, capsys, shape, told):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"] = np.zeros((30, *shape), np.uint8), np.zeros(30, np.uint8)
    run(inspect, tmp_path / "a.h5")
    assert ("colours seem to come first; --shift, --flip and --erase want them last" in capsys.readouterr().out) == told


@pytest.mark.parametrize("label", [-1, 2**40, 2**63])
def test_inspect_refuses_labels_that_are_no_classes(tmp_path, label):
    make(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["test/labels"]
        file["test/labels"] = np.full(50, label, np.uint64 if label > 0 else np.int64)
    with pytest.raises(InputError, match=f"test/labels has a label of {label}; labels are 0 to 1048575"):
        run(inspect, tmp_path / "a.h5")


def test_inspect_shows_labels_without_a_name(tmp_path, capsys):
    make(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["classes"] = ["ant", "bee"]
    run(inspect, tmp_path / "a.h5")
    assert f"2 (which has no name) {(pixels(200)[1][:150] == 2).sum()}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sheet.xyz", "nowhere/sheet.png"])
def test_a_contact_sheet_that_cannot_be_written(tmp_path, name):
    make(tmp_path / "a.h5")
    with pytest.raises(InputError, match=f"--contact-sheet .*{name}: cannot be written: .*name a .png"):
        run(inspect, tmp_path / "a.h5", "--contact-sheet", tmp_path / name)


def test_a_contact_sheet_on_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    make(tmp_path / "a.h5")
    run(inspect, tmp_path / "a.h5", "--contact-sheet", tmp_path / "sheet.png")
    before = (tmp_path / "sheet.png").read_bytes()

    def save(sheet, path, kind):
        path.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(InputError, match=r"sheet\.png: cannot be written: .*No space left on device"):
        run(inspect, tmp_path / "a.h5", "--contact-sheet", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "sheet.png"]


def test_what_streaming_reads_of_contiguous_rows_is_the_rows(tmp_path):
    split = Split(str(tmp_path / "a.h5"), "images", "labels", 1000, (3, 4), np.dtype(np.uint8))
    cost = epoch_cost(split, [block(1000, 7, part) for part in range(7)], 1 << 20)
    assert (cost.bytes, cost.twice) == (12_000, 0)


@pytest.mark.parametrize(("chunk", "window"), [(None, 4000), (13, 4000), (13, 1500), (40, 6000)])
def test_what_inspect_tells_is_what_streaming_reads(tmp_path, monkeypatch, chunk, window):
    """Each request to the file in an epoch of training, in whole chunks."""
    make(tmp_path / "a.h5", **({"chunks": (chunk, 3, 4), "compression": "gzip"} if chunk else {}))
    world = Communicator(MPI.COMM_WORLD)
    data = open_image_set(DataOptions(data=str(tmp_path / "a.h5")), 0, world)
    shards, read = 4, []
    training = TrainingRows(data, shards, 0, world, Host(), Budget(holding="streaming", window=window))
    load = Split.load

    def noted(split, source, part, images, labels):
        read.append((split.row(part.start), len(images)))
        return load(split, source, part, images, labels)

    monkeypatch.setattr(Split, "load", noted)
    for batch in training.epoch(0, 150):
        training.rows.gather(Workspace(Host()), batch.index)
    training.rows.close()
    size, split = data.train.chunk, data.train
    epoch = np.searchsorted(np.cumsum([many for _, many in read]), len(split)) + 1  # the next one is read ahead
    read = read[:epoch]
    assert sum(many for _, many in read) == len(split)
    chunks = [place for first, many in read for place in range(first // size, (first + many - 1) // size + 1)]
    expected = epoch_cost(split, [block(len(split), shards, part) for part in range(shards)], window // shards)
    assert (expected.reads, expected.bytes) == (len(read), len(chunks) * size * 12)
    assert expected.twice == (len(chunks) - len(set(chunks))) * size * 12
