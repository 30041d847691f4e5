"""Files on disks that get full, under names that are taken, and what runs that were killed leave of them."""

import os
import resource
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel import repack
from mpi_parallel.data_parallel.outfile import create, edit
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from tests.data_parallel.test_conversion import pixels, run, write_csv
from tests.launch import launch

LIMIT = 100_000  # bytes of a file: writing beyond fails as it does on a full disk


@contextmanager
def little_room():
    """Files of this process stay small."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def rows(tmp_path) -> Path:
    """A CSV file of 150 kB of pixels, in a folder of its own."""
    (tmp_path / "from").mkdir()
    write_csv(tmp_path / "from" / "rows.csv", *pixels(2000, 75))
    return tmp_path / "from" / "rows.csv"


def test_attributes_may_be_longer_than_hdf5_once_allowed(tmp_path):
    with create(tmp_path / "a.h5") as file:
        file["train/images"] = np.zeros((2, 20_000), np.float32)
    with edit(tmp_path / "a.h5") as file:
        file.attrs["mean"], file.attrs["classes"] = np.arange(20_000.0), [f"class {n}" for n in range(10_000)]
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["mean"][-1] == 19_999 and file.attrs["classes"][-1] == "class 9999"
        assert file["train/images"].id.get_offset() % 4096 == 0


def test_wide_images_are_converted_with_their_moments(tmp_path):
    """Mean and deviation of 64 x 64 x 3 are 98 kB each."""
    images, labels = pixels(20, 64 * 64 * 3)
    np.savez(tmp_path / "a.npz", x=images.reshape(20, 64, 64, 3), y=labels)
    run(tmp_path / "a.npz", "--to", tmp_path / "a.h5", "--split", 1)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_allclose(file.attrs["mean"], images.mean(axis=0))


def test_a_full_disk_is_told_and_leaves_nothing(rows, tmp_path):
    with little_room():
        for name in (tmp_path / "a.h5", tmp_path):
            with pytest.raises(InputError, match="cannot be written"), create(name) as file:
                file["x"] = np.zeros(LIMIT * 2, np.uint8)
        with pytest.raises(InputError, match=r"a\.h5\.unfinished: cannot be written"):
            run(rows, "--to", tmp_path / "a.h5")
    assert [path.name for path in tmp_path.glob("a.h5?*")] == []


def test_packing_on_a_full_disk(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["images"] = np.random.default_rng(0).integers(0, 256, (1200, 160), np.uint8)
        file["labels"] = np.zeros(1200, np.uint8)
    arguments = [str(tmp_path / "old.h5"), "--to", str(tmp_path / "new.h5"), "--filter", "gzip"]
    with little_room(), pytest.raises(InputError, match=r"new\.h5\.unfinished.*: cannot be written"):
        repack.main(Communicator(MPI.COMM_WORLD), arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["old.h5"]


@pytest.mark.parametrize("options", ["--parts", "--parts --merge-parts"])
def test_parts_on_a_full_disk(rows, tmp_path, options):
    program = (
        "import resource\nfrom mpi_parallel import convert\n"  # MPI has made its shared memory, which counts as files
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT} // 2, resource.RLIM_INFINITY))\n"
        "convert.launch(convert.main)"
    )
    done = launch(2, "-c", program, rows, "--to", tmp_path / "a.h5", *options.split())
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "a.h5.unfinished.part-" in done.stderr and "cannot be written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


@pytest.mark.parametrize("options", [[], ["--parts"]])
def test_what_a_killed_run_leaves_is_removed_by_the_next(rows, tmp_path, options):
    """It leaves what was there as it was, and its unfinished files and parts, wherever it is killed."""
    (tmp_path / "a.h5").write_bytes(b"what was there")
    program = (
        "import os, signal\nfrom mpi_parallel import convert\nfrom mpi_parallel.data_parallel import conversion\n"
        "conversion.describe = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nconvert.launch(convert.main)"
    )
    done = launch(2, "-c", program, rows, "--to", tmp_path / "a.h5", *options)
    assert done.returncode != 0
    assert (tmp_path / "a.h5").read_bytes() == b"what was there"
    assert (tmp_path / "a.h5.unfinished").exists()
    assert len(list(tmp_path.glob("a.*.part-*.h5"))) == (2 if options == ["--parts"] else 0)
    run(rows, "--to", tmp_path / "a.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "from"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("from/rows.csv", "is what is read"),
        ("again.csv", "is what is read"),
        ("from", "is a folder: name a file"),
        ("pipe", "is not a regular file"),
        ("a" * 250, "this name is too long"),
        ("a" * 300, "this name is too long"),
        ("a" * 300 + "/a.h5", "there is no folder"),
    ],
)
def test_names_that_are_taken(rows, tmp_path, name, message):
    (tmp_path / "again.csv").symlink_to(rows)
    os.mkfifo(tmp_path / "pipe")
    before = rows.read_bytes()
    with pytest.raises(InputError, match=message):
        run(rows, "--to", tmp_path / name)
    assert rows.read_bytes() == before


def test_a_folder_in_which_nobody_may_write(rows, tmp_path, monkeypatch):
    """Told before anything is read; root, who may write anywhere, is told to be somebody else here."""
    monkeypatch.setattr("mpi_parallel.data_parallel.writing.os.access", lambda folder, how: False)
    monkeypatch.setattr("mpi_parallel.convert.Intake", None)
    with pytest.raises(InputError, match=r"--to .*a\.h5: no permission to write in the folder"):
        run(rows, "--to", tmp_path / "a.h5")
