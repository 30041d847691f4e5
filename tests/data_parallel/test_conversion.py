"""Conversion on 1 to 4 ranks inside the tests, and on up to 7 as a user starts it: always the same file."""

import gzip
import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from sklearn.preprocessing import StandardScaler

from mpi_parallel import convert
from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.data_parallel.formats import array_source, csv_table, idx_header, numbers
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from tests.launch import launch

RANKS = pytest.mark.parallel([1, 2, 3, 4])


@pytest.fixture
def small_units(monkeypatch):
    """Units of a few rows, so that small files have many."""
    monkeypatch.setattr(csv_table, "UNIT", 500)
    monkeypatch.setattr(numbers, "BLOCK", 200)
    monkeypatch.setattr(array_source, "UNIT", 100)


def run(*arguments) -> None:
    """Convert on all ranks of the test."""
    world = Communicator(MPI.COMM_WORLD)
    assert convert.main(world, [str(word) for word in arguments]) == 0
    world.maximum(0)


def on_rank_0(make) -> None:
    if MPI.COMM_WORLD.rank == 0:
        make()
    MPI.COMM_WORLD.Barrier()


def content(path: Path) -> dict[str, np.ndarray]:
    """All arrays and attributes of a file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[...]} if isinstance(item, h5py.Dataset) else {}))
        return found | {f"@{name}": np.asarray(value) for name, value in file.attrs.items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


def pixels(rows: int, features: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, features), np.uint8), rng.integers(0, 3, rows).astype(np.uint8)


def write_csv(path: Path, images: np.ndarray, labels, header: bool = True) -> None:
    lines = [",".join([str(label), *map(str, row)]) for label, row in zip(labels, images.tolist(), strict=True)]
    names = [",".join(["label", *(f"f{i}" for i in range(images.shape[1]))])] if header else []
    text = "\n".join(names + lines).encode() + b"\n"
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def rejoin(arrays: dict[str, np.ndarray], column: str) -> np.ndarray:
    """A column of all splits in the order of the source."""
    names = [name for name in ("train", "validation", "test") if f"{name}/labels" in arrays]
    order = np.argsort(np.concatenate([arrays[f"{name}/source_rows"] for name in names]))
    return np.concatenate([arrays[f"{name}/{column}"] for name in names])[order]


@RANKS
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
@pytest.mark.parametrize("header", [True, False])
def test_csv_arrives_whole_and_is_the_same_for_any_ranks(shared_path, small_units, name, header):
    images, labels = pixels(83)
    source, to = shared_path / name, shared_path / "rows.h5"
    on_rank_0(lambda: write_csv(source, images, labels, header))
    run(source, "--to", to)
    arrays = content(to)
    np.testing.assert_array_equal(rejoin(arrays, "images"), images)
    np.testing.assert_array_equal(rejoin(arrays, "labels"), labels)
    assert [len(arrays[f"{split}/labels"]) for split in ("train", "validation", "test")] == [58, 8, 17]
    digest = hashlib.sha256(to.read_bytes()).hexdigest()
    assert set(MPI.COMM_WORLD.allgather(digest)) == {digest}
    # What one rank alone makes of it.
    alone = shared_path / f"alone-{MPI.COMM_WORLD.rank}.h5"
    assert convert.main(Communicator(MPI.COMM_SELF), [str(source), "--to", str(alone)]) == 0
    assert alone.read_bytes() == to.read_bytes()


@RANKS
def test_bad_rows_are_left_out_and_told_with_their_line(shared_path, small_units, capfd):
    images, labels = pixels(60)
    source, to = shared_path / "rows.csv", shared_path / "rows.h5"

    def damage() -> None:
        write_csv(source, images, labels)
        lines = source.read_text().splitlines()
        lines[5] = lines[5].replace(",", ",,", 1)  # one field too many
        lines[20] = "1,2,3"
        lines[21] = ",".join(["2", *["7"] * 11, ""])
        lines[40] = ",".join(["1", *["nan"] * 12])
        lines[50] = "-4" + lines[50][1:]
        lines[51] = ",".join(["1", *["7"] * 11, "x"])
        lines.insert(30, "")
        source.write_text("\n".join(lines))

    on_rank_0(damage)
    run(source, "--to", to)
    arrays, out = content(to), capfd.readouterr().out
    good = np.delete(np.arange(60), [4, 19, 20, 39, 49, 50])
    np.testing.assert_array_equal(rejoin(arrays, "images"), images[good])
    assert int(arrays["@rows_left_out"]) == 6
    told = (shared_path / "rows.h5.left-out.txt").read_text().splitlines()
    assert [line.removeprefix(f"{source} ") for line in told] == [
        "line 6: has 14 fields, not 13",
        "line 21: has 3 fields, not 13",
        "line 22: field 13 (f11) is missing",
        "line 42: field 2 (f0) is missing",
        "line 52: label -4 is unknown: a whole number from 0 to 1048575 is wanted",
        "line 53: field 13 (f11) is 'x', not a number",
    ]
    if MPI.COMM_WORLD.rank == 0:
        assert "left out 6 bad rows" in out
    with pytest.raises(InputError, match=r"6 bad rows: .*rows\.csv\n.*line 6"):
        run(source, "--to", to, "--clean", "fail")
    assert same(content(to), arrays)  # what was there is still there


@RANKS
def test_labels_may_be_names_and_pixels_fractions(shared_path, small_units):
    images, labels = pixels(70)
    names, source, to = np.array(["owl", "ant, red", "bee"]), shared_path / "rows.csv", shared_path / "rows.h5"
    fractions = (images / 7).astype(np.float32)

    def make() -> None:
        lines = [
            ";".join(
                [*(f"{value:.9g}" for value in row[:5]), f'"{names[label]}"', *(f"{value:.9g}" for value in row[5:])]
            )
            for row, label in zip(fractions, labels, strict=True)
        ]
        source.write_text("\r\n".join([";".join([*"abcde", "kind", *"fghijkl"]), *lines]))

    on_rank_0(make)
    run(source, "--to", to, "--labels", "kind", "--shape", 3, 4, "--split", 1)
    arrays = content(to)
    assert arrays["@classes"].tolist() == ["ant, red", "bee", "owl"]
    assert arrays["train/images"].dtype == np.float32
    np.testing.assert_array_equal(rejoin(arrays, "images"), fractions.reshape(-1, 3, 4))
    np.testing.assert_array_equal(rejoin(arrays, "labels"), np.array([2, 0, 1])[labels])
    run(source, "--to", to, "--labels", 5, "--classes", "owl", "bee")
    assert (content(to)["@classes"].tolist(), int(content(to)["@rows_left_out"])) == (
        ["owl", "bee"],
        (labels == 1).sum(),
    )


@RANKS
@pytest.mark.parametrize("pack", [False, True])
def test_idx_pairs_keep_their_test_split(shared_path, small_units, pack):
    images, labels = pixels(50)
    images = images.reshape(50, 3, 4)

    def make() -> None:
        for name, rows in (("train", slice(0, 37)), ("t10k", slice(37, 50))):
            for kind, array in (("images", images[rows]), ("labels", labels[rows])):
                data = idx_header(array) + array.tobytes()
                (shared_path / f"{name}-{kind}").write_bytes(gzip.compress(data) if pack else data)

    on_rank_0(make)
    run(*sorted(shared_path.glob("t*-*")), "--to", shared_path / "set.h5")
    arrays = content(shared_path / "set.h5")
    for split, rows in (("train", slice(0, 37)), ("test", slice(37, 50))):
        np.testing.assert_array_equal(arrays[f"{split}/images"], images[rows])
        np.testing.assert_array_equal(arrays[f"{split}/labels"], labels[rows])
    assert "validation/labels" not in arrays
    first = arrays["@source_first_rows"].tolist()  # t10k comes first in the alphabet
    assert (first, arrays["train/source_rows"].tolist()) == ([0, 13], list(range(13, 50)))


@RANKS
@pytest.mark.parametrize("scale", ["scalar", "feature"])
def test_standardisation_agrees_with_scikit_learn(shared_path, small_units, scale):
    images, labels = pixels(200)
    images[:, 3] = 9  # constant
    source, to = shared_path / "rows.csv", shared_path / "rows.h5"
    on_rank_0(lambda: write_csv(source, images, labels))
    run(source, "--to", to, "--scale", scale)
    arrays = content(to)
    train = arrays["train/images"].astype(float)
    expected = StandardScaler().fit(train if scale == "feature" else train.reshape(-1, 1))
    np.testing.assert_allclose(arrays["@mean"], expected.mean_, rtol=1e-12)
    np.testing.assert_allclose(arrays["@std"], expected.scale_, rtol=1e-12)


@RANKS
@pytest.mark.parametrize("merge", [False, True])
def test_parts_look_like_one_file(shared_path, small_units, merge):
    images, labels = pixels(83)
    source, one, parts = (shared_path / name for name in ("rows.csv.gz", "one.h5", "parts.h5"))
    on_rank_0(lambda: write_csv(source, images, labels))
    run(source, "--to", one)
    for _ in range(2):  # the second time the first one's parts are removed
        run(source, "--to", parts, "--parts", *["--merge-parts"] * merge)
    arrays = content(parts)
    arrays.pop("@parts", None)
    assert same(arrays, content(one))
    many = MPI.COMM_WORLD.size > 1 and not merge
    data = open_image_set(DataOptions(data=str(parts)), 0, Communicator(MPI.COMM_WORLD))
    np.testing.assert_array_equal(data.train.read(range(len(data.train)))[0], arrays["train/images"])
    assert len(list(shared_path.glob("parts.*.part-*.h5"))) == (MPI.COMM_WORLD.size if many else 0)
    with h5py.File(parts) as file:
        assert file["train/images"].is_virtual == many


@pytest.mark.parametrize("ranks", [5, 7])
def test_more_ranks_as_a_user_starts_them(tmp_path, ranks):
    images, labels = pixels(2500, 784)
    write_csv(tmp_path / "rows.csv", images, labels)
    run(tmp_path / "rows.csv", "--to", tmp_path / "one.h5")
    done = launch(ranks, "-m", "mpi_parallel.convert", tmp_path / "rows.csv", "--to", tmp_path / "many.h5")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "many.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rows.csv"], "--to is missing"),
        (["--to", "a.h5"], "SOURCE is missing"),
        (["gone.csv", "--to", "a.h5"], "gone.csv: no such file or folder"),
        (["a" * 300, "--to", "a.h5"], "aaa: cannot be read: File name too long"),
        (["rows.csv", "--to", "nowhere/a.h5"], "there is no folder nowhere"),
        (["rows.csv", "--to", "a.h5", "--split", "0.5", "0.2"], "sum to 1, not 0.7"),
        (["rows.csv", "fewer.csv", "--to", "a.h5"], r"fewer.csv line 2 is \(11,\) and rows.csv line 2 \(12,\)"),
        (
            ["rows.csv", "--to", "a.h5", "--split", "0", "0", "1"],
            "--scale feature is computed .* there are none: see --split",
        ),
        (
            ["bad.csv", "--to", "a.h5"],
            r"no good rows were found, but 20 bad rows: 20 of bad.csv\n  bad.csv line 2: label -",
        ),
        (["names.csv", "--to", "a.h5"], "no good rows were found in names.csv"),
        (["texts.csv", "--to", "a.h5"], r"(?s)1 bad row: .*'x-1', not a number\n--ignore COLUMN leaves a column out"),
        (["images-idx", "--to", "a.h5"], "IDX files go in pairs: 1 with images .*, 0 with labels"),
        (["empty.csv", "--to", "a.h5"], "empty.csv: is empty"),
        (["rows.csv", "--to", "a.h5", "--images", "x"], "--images is for NPZ and HDF5 files, and no source is one"),
        (["rows.csv", "--to", "a.h5", "--greyscale"], "--greyscale is for folders of pictures, and no source is one"),
        (["images-idx", "--to", "a.h5", "--shape", "3", "4"], "--shape is for CSV files, and no source is one"),
    ],
)
def test_what_cannot_be_converted(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    images, labels = pixels(20)
    write_csv(tmp_path / "rows.csv", images, labels)
    write_csv(tmp_path / "fewer.csv", images[:, 1:], labels)
    write_csv(tmp_path / "bad.csv", images, labels.astype(int) - 9)
    (tmp_path / "images-idx").write_bytes(idx_header(images.reshape(20, 3, 4)) + images.tobytes())
    (tmp_path / "empty.csv").touch()
    (tmp_path / "names.csv").write_text("label,a,b\n")
    (tmp_path / "texts.csv").write_text("id,label,a\nx-1,2,3\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        run(*arguments)
    assert sorted(tmp_path.iterdir()) == before


@RANKS
def test_training_rows_are_shared_out_where_that_is_asked_for(shared_path):
    images, labels = pixels(90)
    parts = {"x_train": images[:60], "y_train": labels[:60], "x_test": images[60:], "y_test": labels[60:]}
    on_rank_0(lambda: np.savez(shared_path / "a.npz", **parts))
    run(shared_path / "a.npz", "--to", shared_path / "a.h5", "--split", 0.8, 0.2)
    arrays = content(shared_path / "a.h5")
    assert [len(arrays[f"{split}/labels"]) for split in ("train", "validation", "test")] == [48, 12, 30]
    np.testing.assert_array_equal(arrays["test/images"], images[60:])
    np.testing.assert_array_equal(rejoin(arrays, "images"), images)

    def keep_test() -> None:
        with h5py.File(shared_path / "b.h5", "w") as file:
            file["test/images"], file["test/labels"] = images, labels

    on_rank_0(keep_test)
    with pytest.raises(InputError, match="--split: there is nothing to share out"):
        run(shared_path / "b.h5", "--to", shared_path / "c.h5", "--split", 1)


@RANKS
def test_the_list_of_bad_rows_is_that_of_the_file_beside_it(shared_path):
    images, labels = pixels(30)
    to, told = shared_path / "rows.h5", shared_path / "rows.h5.left-out.txt"
    on_rank_0(lambda: write_csv(shared_path / "bad.csv", images, labels.astype(int) - 1))
    on_rank_0(lambda: write_csv(shared_path / "good.csv", images, labels))
    run(shared_path / "bad.csv", "--to", to)
    before = told.read_text()
    assert len(before.splitlines()) == (labels == 0).sum()
    on_rank_0(lambda: write_csv(shared_path / "huge.csv", images * 1e200, labels.astype(int) - 2))
    with pytest.raises(InputError, match="numbers beyond 1e150 cannot be standardised"):  # after all is written
        run(shared_path / "huge.csv", "--to", to)
    assert told.read_text() == before
    MPI.COMM_WORLD.Barrier()
    run(shared_path / "good.csv", "--to", to)
    assert sorted(path.name for path in shared_path.iterdir()) == ["bad.csv", "good.csv", "huge.csv", "rows.h5"]


def test_rows_that_memory_has_no_room_for_wait_on_disk(tmp_path, monkeypatch, small_units):
    images, labels = pixels(83)
    write_csv(tmp_path / "rows.csv", images, labels)
    run(tmp_path / "rows.csv", "--to", tmp_path / "memory.h5")
    monkeypatch.setattr(convert, "BUDGET", 300)
    run(tmp_path / "rows.csv", "--to", tmp_path / "disk.h5")
    assert (tmp_path / "disk.h5").read_bytes() == (tmp_path / "memory.h5").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3
