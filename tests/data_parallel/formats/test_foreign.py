"""NPZ, pictures and HDF5 of other layouts: read on all ranks, and refused for good reasons."""

import os
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest
from PIL import Image

from mpi_parallel.data_parallel.formats import array_source, hdf5, pictures
from mpi_parallel.data_parallel.formats.hdf5 import hdf5_sources
from mpi_parallel.data_parallel.formats.source import SourceOptions
from mpi_parallel.options import InputError
from tests.data_parallel.test_conversion import RANKS, content, on_rank_0, pixels, rejoin, run

NAMES = np.array(["ant", "bee", "owl"])


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(array_source, "UNIT", 100)
    monkeypatch.setattr(hdf5, "UNIT", 100)
    monkeypatch.setattr(pictures, "A_UNIT", 3)


@RANKS
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_splits(shared_path, save):
    images, labels = pixels(60)
    on_rank_0(lambda: save(shared_path / "a.npz", x_train=images[:40], y_train=labels[:40, None],
                           x_test=images[40:], y_test=labels[40:]))  # fmt: skip
    run(shared_path / "a.npz", "--to", shared_path / "a.h5")
    arrays = content(shared_path / "a.h5")
    np.testing.assert_array_equal(arrays["train/images"], images[:40])
    np.testing.assert_array_equal(arrays["test/images"], images[40:])
    np.testing.assert_array_equal(arrays["train/labels"], labels[:40])


@RANKS
def test_npz_by_names_with_rows_that_are_not_finite(shared_path):
    images, labels = pixels(60)
    values = images.astype(np.float32)
    values[[7, 33], 4] = np.nan, np.inf
    on_rank_0(lambda: np.savez(shared_path / "a.npz", pics=values, kinds=NAMES[labels]))
    run(shared_path / "a.npz", "--to", shared_path / "a.h5", "--images", "pics", "--labels", "kinds")
    arrays, good = content(shared_path / "a.h5"), np.delete(np.arange(60), [7, 33])
    np.testing.assert_array_equal(rejoin(arrays, "images"), values[good])
    assert arrays["@classes"].tolist() == NAMES.tolist()
    told = (shared_path / "a.h5.left-out.txt").read_text().splitlines()
    assert [line.partition(": ")[2] for line in told] == [
        f"pics row {row}: has a pixel that is not finite" for row in (7, 33)
    ]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((3, 2))}, "arrays that nobody knows the meaning of; it has a: name two"),
        ({"x": np.array([None] * 3), "y": np.zeros(3, int)}, "holds Python objects"),
        ({"x": np.zeros((3, 2, 2)).T, "y": np.zeros(2, int)}, "Fortran order"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((3, 10))}, r"labels are \(N,\), of one-hot ones their argmax"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, "3 images, but 4 labels"),
        ({"x": np.zeros((3, 2), complex), "y": np.zeros(3)}, "images are numbers"),
    ],
)
def test_npz_that_is_no_image_set(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "a.npz", "--to", tmp_path / "a.h5")
    with pytest.raises(InputError, match=f"has no array gone; it has {', '.join(arrays)}: name two"):
        run(tmp_path / "a.npz", "--to", tmp_path / "a.h5", "--images", "gone", "--labels", "y")
    assert not list(tmp_path.glob("a.h5*"))


def test_npz_that_promises_more_than_it_holds(tmp_path):
    np.savez(tmp_path / "good.npz", x=np.zeros((3, 2), np.uint8), y=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
        bad.writestr(
            "x.npy", good.read("x.npy").replace(b"(3, 2)", b"(3000000000, 2)").replace(b" " * 9 + b"\n", b"\n")
        )
        bad.writestr("y.npy", good.read("y.npy"))
    with pytest.raises(InputError, match=r"x promises \(3000000000, 2\) of uint8"):
        run(tmp_path / "bad.npz", "--to", tmp_path / "a.h5")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-30])
    with pytest.raises(InputError, match="not an NPZ archive"):
        run(tmp_path / "cut.npz", "--to", tmp_path / "a.h5")


def save_pictures(folder, images, labels, ending: str, wide: int = 4) -> None:
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / NAMES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.reshape(-1, wide)).save(folder / NAMES[label] / f"{row:03}{ending}")


@RANKS
@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_class_folders_of_pictures(shared_path, ending):
    images, labels = pixels(40)
    on_rank_0(lambda: save_pictures(shared_path / "set", images, labels, ending))
    on_rank_0(lambda: (shared_path / "set" / "bee" / "zzz.png").write_bytes(b"\x89PNG\r\n\x1a\nand so on"))
    run(shared_path / "set", "--to", shared_path / "a.h5")
    arrays, order = content(shared_path / "a.h5"), np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(rejoin(arrays, "images"), images.reshape(-1, 3, 4)[order])
    np.testing.assert_array_equal(rejoin(arrays, "labels"), labels[order])
    assert arrays["@classes"].tolist() == NAMES.tolist()
    assert "bee/zzz.png: cannot be decoded" in (shared_path / "a.h5.left-out.txt").read_text()


@RANKS
def test_folders_of_splits_are_splits_and_no_classes(shared_path):
    images, labels = pixels(60)
    parts = {"train": slice(0, 30), "val": slice(30, 40), "Test": slice(40, 60)}

    def save() -> None:
        for name, part in parts.items():
            save_pictures(shared_path / "a" / name, images[part], labels[part], ".png")

    on_rank_0(save)
    run(shared_path / "a", "--to", shared_path / "a.h5")
    arrays = content(shared_path / "a.h5")
    assert arrays["@classes"].tolist() == NAMES.tolist()
    for name, part in zip(("train", "validation", "test"), parts.values(), strict=True):
        order = np.argsort(labels[part], kind="stable")
        np.testing.assert_array_equal(arrays[f"{name}/images"], images[part].reshape(-1, 3, 4)[order])
        np.testing.assert_array_equal(arrays[f"{name}/labels"], labels[part][order])


def test_classes_may_be_called_as_splits_are(tmp_path):
    """Trains, and tests: the pictures are in these folders themselves, or others are beside them."""
    images, labels = pixels(20)
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        Image.fromarray(images.reshape(-1, 3, 4)[0]).save(tmp_path / folder / "a.png")
    run(tmp_path, "--to", tmp_path / "a.h5")
    assert content(tmp_path / "a.h5")["@classes"].tolist() == ["test", "train"]
    save_pictures(tmp_path / "train", images, labels, ".png")
    with pytest.raises(InputError, match="test: a folder of class folders with pictures is wanted"):
        run(tmp_path, "--to", tmp_path / "a.h5")
    save_pictures(tmp_path, images, labels, ".png")
    run(tmp_path, "--to", tmp_path / "a.h5")
    assert content(tmp_path / "a.h5")["@classes"].tolist() == ["ant", "bee", "owl", "test", "train"]


def test_pictures_are_made_alike_on_request(tmp_path):
    (tmp_path / "set" / "ant").mkdir(parents=True)
    for number, size in enumerate([(8, 6), (8, 6), (5, 9), (16, 12)]):
        Image.new("RGB", size, (10 * number, 100, 200)).save(tmp_path / "set" / "ant" / f"{number}.jpg")
    Image.new("I;16", (8, 6), 60000).save(tmp_path / "set" / "ant" / "5.png")
    with pytest.raises(InputError, match=r"2\.jpg is 9 x 5 x 3, but the first picture of .* is 6 x 8 x 3; --size"):
        run(tmp_path / "set", "--to", tmp_path / "a.h5")
    with pytest.raises(InputError, match=r"5\.png is I;16, but the first picture is RGB"):
        run(tmp_path / "set", "--to", tmp_path / "a.h5", "--size", "3x4")
    (tmp_path / "set" / "ant" / "5.png").unlink()
    run(tmp_path / "set", "--to", tmp_path / "a.h5", "--size", "3x4", "--greyscale", "--split", 1)
    images = content(tmp_path / "a.h5")["train/images"]
    assert images.shape == (4, 3, 4)
    assert abs(images[2].astype(int) - (0.299 * 20 + 0.587 * 100 + 0.114 * 200)).max() <= 3


def test_grey_pictures_among_coloured_ones(tmp_path):
    """Whichever comes first."""
    (tmp_path / "set" / "ant").mkdir(parents=True)
    for number, mode in enumerate(["L", "RGB", "L"]):
        Image.new(mode, (4, 3), 7 if mode == "L" else (1, 2, 3)).save(tmp_path / "set" / "ant" / f"{number}.png")
    (tmp_path / "set" / "ant" / "._0.png").write_bytes(b"as macOS puts beside")
    with pytest.raises(InputError, match=r"1\.png is RGB, but the first picture is L; --greyscale or --colour makes"):
        run(tmp_path / "set", "--to", tmp_path / "a.h5")
    run(tmp_path / "set", "--to", tmp_path / "a.h5", "--colour", "--split", 1)
    arrays = content(tmp_path / "a.h5")
    assert arrays["train/images"][:, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3], [7, 7, 7]]
    assert arrays["@rows_left_out"] == 0
    with pytest.raises(InputError, match="--greyscale and --colour are two ways"):
        run(tmp_path / "set", "--to", tmp_path / "a.h5", "--colour", "--greyscale")


def test_sixteen_bit_pictures_keep_their_depth_and_giants_are_not_decoded(tmp_path, monkeypatch):
    (tmp_path / "set" / "ant").mkdir(parents=True)
    deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(deep).save(tmp_path / "set" / "ant" / "deep.png")
    Image.new("L", (300, 200)).save(tmp_path / "set" / "ant" / "giant.png")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 1000)
    run(tmp_path / "set", "--to", tmp_path / "a.h5", "--split", 1)
    np.testing.assert_array_equal(content(tmp_path / "a.h5")["train/images"], deep[None])
    assert "giant.png: promises 300 x 200 pixels" in (tmp_path / "a.h5.left-out.txt").read_text()


def test_a_folder_without_pictures_and_a_size_that_is_none(tmp_path):
    with pytest.raises(InputError, match="there are no pictures"):
        run(tmp_path, "--to", tmp_path / "a.h5")
    save_pictures(tmp_path / "set", *pixels(4), ".png")
    with pytest.raises(InputError, match="--size 99999x99999: more than 67,108,864 pixels"):
        run(tmp_path / "set", "--to", tmp_path / "a.h5", "--size", "99999x99999")
    with pytest.raises(InputError, match="--size 0x3: height x width"):
        run(tmp_path / "set", "--to", tmp_path / "a.h5", "--size", "0x3")


@RANKS
@pytest.mark.parametrize("options", [{}, {"chunks": (7, 12), "compression": "gzip"}])
def test_hdf5_by_paths(shared_path, options):
    images, labels = pixels(60)

    def make() -> None:
        with h5py.File(shared_path / "a.h5", "w") as file:
            file.create_dataset("deep/inside/pics", data=images.astype(">u2"), **options)
            file["kinds"] = labels.astype(float)
            file["names"] = NAMES[labels].astype(object)

    on_rank_0(make)
    run(shared_path / "a.h5", "--to", shared_path / "b.h5", "--images", "deep/inside/pics", "--labels", "/kinds")
    arrays = content(shared_path / "b.h5")
    assert arrays["train/images"].dtype == np.dtype("<u2")
    np.testing.assert_array_equal(rejoin(arrays, "images"), images)
    np.testing.assert_array_equal(rejoin(arrays, "labels"), labels)
    run(shared_path / "a.h5", "--to", shared_path / "c.h5", "--images", "deep/inside/pics", "--labels", "names")
    assert content(shared_path / "c.h5")["@classes"].tolist() == NAMES.tolist()
    run(shared_path / "c.h5", "--to", shared_path / "d.h5")  # our own layout keeps its splits and names
    arrays, again = content(shared_path / "c.h5"), content(shared_path / "d.h5")
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays if name.endswith(("images", "labels")))
    assert again["@classes"].tolist() == NAMES.tolist()
    with pytest.raises(InputError, match="there is no dataset /pics; it has /deep/inside/pics, /kinds, /names"):
        run(shared_path / "a.h5", "--to", shared_path / "e.h5", "--images", "/pics", "--labels", "/kinds")


@pytest.mark.parametrize(("chunks", "units"), [((60, 1), 5), ((10, 12), 6), ((25, 4), 5)])
def test_chunks_that_are_many_rows_long_are_not_all_read_at_once(tmp_path, monkeypatch, chunks, units):
    """Whole chunks, where memory has room for those that lie beside each other."""
    monkeypatch.setattr(hdf5, "MOST", 144)
    images, labels = pixels(60)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=images, chunks=chunks)
        file["labels"] = labels
    assert hdf5_sources(tmp_path / "a.h5", SourceOptions())[0].units == units
    run(tmp_path / "a.h5", "--to", tmp_path / "b.h5")
    np.testing.assert_array_equal(rejoin(content(tmp_path / "b.h5"), "images"), images)


def test_labels_that_are_fractions_are_bad_rows(tmp_path):
    images, labels = pixels(20)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"] = images, labels + np.where(np.arange(20) == 11, 0.5, 0)
    with pytest.raises(InputError, match=r"1 bad row: .*a\.h5\n.*images row 11: label .*\.5 is unknown"):
        run(tmp_path / "a.h5", "--to", tmp_path / "b.h5", "--clean", "fail")


def test_labels_of_bytes_that_are_no_text(tmp_path):
    images, labels = pixels(30)
    names = np.array([b"ant", b"\xff", b"owl"])[labels]
    np.savez(tmp_path / "a.npz", x=images, y=names)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images"], file["labels"] = images, names
    for name in ("a.npz", "b.h5"):
        run(tmp_path / name, "--to", tmp_path / "c.h5", "--split", 1)
        assert content(tmp_path / "c.h5")["@classes"].tolist() == ["ant", "owl"]
        told = (tmp_path / "c.h5.left-out.txt").read_text().splitlines()
        assert len(told) == (labels == 1).sum()
        assert told[0].endswith(r"label '\udcff' is no text in UTF-8")


def test_labels_in_a_column_and_hdf5_behind_a_text(tmp_path):
    """As MATLAB writes them; the file does not begin with the mark of HDF5."""
    images, labels = pixels(30)
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["x"], file["y"] = images, labels[:, None].astype(float)
    with (tmp_path / "a.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform")
    run(tmp_path / "a.mat", "--to", tmp_path / "b.h5", "--images", "x", "--labels", "y", "--split", 1)
    np.testing.assert_array_equal(content(tmp_path / "b.h5")["train/labels"], labels)


def test_a_smaller_type_holds_what_it_can(tmp_path):
    images, labels = pixels(30)
    values = images.astype(float)
    values[[3, 8, 11], 2] = 256, -1, 0.5
    np.savez(tmp_path / "a.npz", x=values, y=labels)
    run(tmp_path / "a.npz", "--to", tmp_path / "b.h5", "--split", 1, "--dtype", "uint8")
    np.testing.assert_array_equal(content(tmp_path / "b.h5")["train/images"], np.delete(images, [3, 8, 11], axis=0))
    assert "x row 3: has a pixel that uint8 does not hold" in (tmp_path / "b.h5.left-out.txt").read_text()
    values[5, 1] = 1e300
    np.savez(tmp_path / "a.npz", x=values, y=labels)
    run(tmp_path / "a.npz", "--to", tmp_path / "b.h5", "--split", 1, "--dtype", "float32")
    kept = np.delete(values, 5, axis=0).astype(np.float32)
    np.testing.assert_array_equal(content(tmp_path / "b.h5")["train/images"], kept)
    told = (tmp_path / "b.h5.left-out.txt").read_text()
    assert told.endswith("x row 5: has a pixel that is not finite in float32\n")


def test_pictures_below_class_folders_and_what_only_looks_like_one(tmp_path):
    """Links that go in circles, a pipe whose reading would never end, a name that is no text, hidden folders."""
    images, labels = pixels(12)
    folder = tmp_path / "set"
    save_pictures(folder, images, labels, ".png")
    for below in ("deeper", ".hidden"):
        (folder / "bee" / below).mkdir()
        Image.fromarray(images[0].reshape(3, 4)).save(folder / "bee" / below / "x.png")
    (folder / "bee" / "up").symlink_to(folder)
    (folder / "bee" / "self.png").symlink_to("self.png")
    os.mkfifo(folder / "bee" / "pipe.png")
    odd = folder / os.fsdecode(b"\xff")
    odd.mkdir()
    (folder / "ant").rename(tmp_path / "ant")
    (folder / "ant").symlink_to(tmp_path / "ant")  # a class may be elsewhere
    Image.fromarray(images[0].reshape(3, 4)).save(odd / "x.png")
    run(folder, "--to", tmp_path / "a.h5", "--split", 1)
    arrays = content(tmp_path / "a.h5")
    np.testing.assert_array_equal(np.bincount(arrays["train/labels"]), np.bincount([*labels, 1]))
    assert arrays["@classes"].tolist() == NAMES.tolist()
    told = (tmp_path / "a.h5.left-out.txt").read_text()
    for line in ("pipe.png: is not a file", "self.png: cannot be decoded", r"x.png: label '\udcff' is no text"):
        assert line in told


def test_pictures_keep_their_numbers_or_are_refused(tmp_path):
    """32-bit grey stays what it is; of 16-bit colours Pillow would read 8 bits."""
    (tmp_path / "set" / "ant").mkdir(parents=True)
    values = np.array([[-5, 70_000], [2**30, 3]], np.int32)
    Image.fromarray(values).save(tmp_path / "set" / "ant" / "0.tiff")
    run(tmp_path / "set", "--to", tmp_path / "a.h5", "--split", 1)
    np.testing.assert_array_equal(content(tmp_path / "a.h5")["train/images"], values[None])
    (tmp_path / "set" / "ant" / "0.tiff").unlink()
    deep = [b"IHDR" + struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(7)), b"IEND"]
    chunks = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in deep]
    (tmp_path / "set" / "ant" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(InputError, match=r"1\.png has colours of 16 bits, of which Pillow reads 8"):
        run(tmp_path / "set", "--to", tmp_path / "a.h5")


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    save_pictures(tmp_path / "set", *pixels(4), ".png")
    walk = os.walk

    def refused(top, onerror):
        onerror(PermissionError(13, "Permission denied", str(top)))
        return walk(top)

    monkeypatch.setattr(pictures.os, "walk", refused)
    with pytest.raises(InputError, match=r"set/.*: cannot be read: .*Permission denied"):
        run(tmp_path / "set", "--to", tmp_path / "a.h5")
