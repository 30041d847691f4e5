"""data/fashion_mnist.py and the small image set, as a user meets them. No test here needs a network."""

import functools
import gzip
import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpi_parallel.data_parallel.formats import idx_header

DATA = Path(__file__).resolve().parent.parent / "data"
SCRIPT = DATA / "fashion_mnist.py"
SMALL = DATA / "fashion-mnist-small.h5"
WHOLE = DATA / "fashion-mnist.h5"
# Nothing there that the script could run, and no way out: as on a machine without apt and without a network.
BARE = {"PATH": "/nonexistent", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}


@pytest.fixture
def script(monkeypatch):
    """The script as a module, with a tiny set in the place of Fashion-MNIST."""
    monkeypatch.syspath_prepend(str(DATA))
    import fashion_mnist

    digests = {name: fashion_mnist.sha256(array) for name, array in tiny().items()}
    monkeypatch.setattr(fashion_mnist.sources, "DIGESTS", digests)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield fashion_mnist
    for number, handler in before.items():
        signal.signal(number, handler)


def tiny() -> dict[str, np.ndarray]:
    """Eight and four images in the place of the whole set."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, rows in (("train", 8), ("test", 4)):
        arrays[f"{split}/images"] = rng.integers(0, 256, (rows, 28, 28), np.uint8)
        arrays[f"{split}/labels"] = rng.integers(0, 10, rows, np.uint8)
    return arrays


def write_idx(folder: Path, suffix: str = ".gz") -> Path:
    """Write the tiny set as IDX files."""
    folder.mkdir(parents=True)
    for (name, array), prefix in zip(tiny().items(), ("train", "train", "t10k", "t10k"), strict=True):
        kind = f"{name.split('/')[1]}-idx{array.ndim}-ubyte"
        content = idx_header(array) + array.tobytes()
        (folder / f"{prefix}-{kind}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return folder


def run_main(script, monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["fashion_mnist.py", *map(str, arguments)])
    script.main()


def run_user(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, timeout=60, check=False
    )


def assert_holds_tiny(path: Path) -> None:
    with h5py.File(path) as file:
        for name, array in tiny().items():
            np.testing.assert_array_equal(file[name][...], array)
            assert file[name].chunks is None  # contiguous
        images = tiny()["train/images"].astype(float)
        assert file.attrs["mean"] == pytest.approx(images.mean(), rel=1e-14)
        assert file.attrs["std"] == pytest.approx(images.std(), rel=1e-14)
        assert file.attrs["format_version"] == 1


class TestSmallFile:
    """The file in the repository."""

    def test_is_the_one_that_the_readme_describes(self):
        content = SMALL.read_bytes()
        listed = re.search(r"([0-9a-f]{64})  fashion-mnist-small\.h5", (DATA / "README.md").read_text())
        assert hashlib.sha256(content).hexdigest() == listed[1]
        assert len(content) <= 7_000_000

    @pytest.mark.parametrize(("split", "per_class"), [("train", 1200), ("test", 200)])
    def test_splits_are_stratified_and_shuffled(self, split, per_class):
        with h5py.File(SMALL) as file:
            images, labels = file[f"{split}/images"], file[f"{split}/labels"][...]
            assert images.shape == (10 * per_class, 28, 28)
            assert images.dtype == labels.dtype == np.uint8
        assert np.bincount(labels).tolist() == [per_class] * 10
        in_a_tenth = np.bincount(labels[:per_class], minlength=10)
        assert in_a_tenth.min() > per_class / 20  # a tenth of the rows holds about a tenth of each class

    def test_attributes(self):
        with h5py.File(SMALL) as file:
            pixels = file["train/images"][...].astype(np.float64)
            assert set(file.keys()) == {"train", "test"}
            assert file.attrs["mean"] == pytest.approx(pixels.mean(), rel=1e-12)
            assert file.attrs["std"] == pytest.approx(pixels.std(), rel=1e-12)
            assert list(file.attrs["classes"])[::9] == ["T-shirt/top", "Ankle boot"]
            assert len(file.attrs["classes"]) == 10
            assert file.attrs["format_version"] == 1
            assert file.attrs["seed"] == 0
            assert "12,000 of 60,000" in file.attrs["source"]
            assert file.attrs["licence"].startswith("MIT")

    def test_the_script_finds_it_right(self):
        done = run_user("--small", **BARE)
        assert (done.returncode, done.stderr) == (0, "")
        assert "is there already, and right" in done.stdout

    def test_is_what_the_script_cuts_from_the_whole(self, script):
        if not WHOLE.exists():
            pytest.skip("needs the whole set: make data")
        with h5py.File(WHOLE) as file:
            arrays = {name: file[name][...] for name in tiny()}
        small = script.cut(arrays, script.SMALL_PER_CLASS, script.SMALL_SEED)
        assert {name: script.sha256(array) for name, array in small.items()} == script.SMALL_DIGESTS


class TestSources:
    """Each source, and what is said when none has the set."""

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_named_idx_files(self, script, monkeypatch, tmp_path, suffix):
        folder = write_idx(tmp_path / "idx", suffix)
        run_main(script, monkeypatch, "--idx", folder, "--to", tmp_path / "new" / "set.h5")
        assert_holds_tiny(tmp_path / "new" / "set.h5")

    def test_debian_package_with_and_without_lists(self, script, monkeypatch, tmp_path):
        write_idx(tmp_path / "package")
        for lists in ("known", "missing"):
            fake_apt(tmp_path / lists, tmp_path / "package", lists)
            monkeypatch.setenv("PATH", f"{tmp_path / lists}:/usr/bin:/bin")
            run_main(script, monkeypatch, "--to", tmp_path / f"{lists}.h5")
            assert_holds_tiny(tmp_path / f"{lists}.h5")

    def test_publishers_site_after_one_that_is_gone(self, script, monkeypatch, tmp_path):
        handler = functools.partial(QuietHandler, directory=write_idx(tmp_path / "site"))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            address = f"http://127.0.0.1:{server.server_port}"
            monkeypatch.setattr(script.sources, "SITES", (f"{address}/gone", address))
            monkeypatch.setenv("PATH", "/nonexistent")
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            threading.Thread(target=server.serve_forever, daemon=True).start()
            run_main(script, monkeypatch, "--to", tmp_path / "set.h5")
            server.shutdown()
        assert_holds_tiny(tmp_path / "set.h5")

    def test_none_can_be_had(self, tmp_path):
        done = run_user("--to", tmp_path / "set.h5", **BARE)
        assert done.returncode == 2
        assert "Debian's package: no apt-get" in done.stderr
        assert done.stderr.count("refused") == 2  # both of the publisher's addresses
        assert "--idx FOLDER" in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []


class TestRefusals:
    """Wrong input: one message, status 2, and nothing under the final name."""

    def test_files_with_another_digest(self, tmp_path):
        folder = write_idx(tmp_path / "idx")
        done = run_user("--idx", folder, "--to", tmp_path / "set.h5")
        assert done.returncode == 2
        assert "train-images-idx3-ubyte.gz is not Fashion-MNIST's: its SHA-256 is" in done.stderr
        assert "c59f468a" in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == [folder]

    def test_a_missing_file(self, tmp_path):
        (write_idx(tmp_path / "idx") / "train-images-idx3-ubyte.gz").unlink()
        done = run_user("--idx", tmp_path / "idx", "--to", tmp_path / "set.h5")
        assert done.returncode == 2
        assert "has neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz" in done.stderr

    def test_a_damaged_file(self, tmp_path):
        (write_idx(tmp_path / "idx") / "train-images-idx3-ubyte.gz").write_bytes(b"<html>not here</html>")
        done = run_user("--idx", tmp_path / "idx", "--to", tmp_path / "set.h5")
        assert done.returncode == 2
        assert "train-images-idx3-ubyte.gz: not an IDX file" in done.stderr

    def test_another_file_in_its_place_is_kept(self, tmp_path):
        mine = tmp_path / "mine.h5"
        mine.write_bytes(b"years of work")
        done = run_user("--idx", tmp_path, "--to", mine)
        assert done.returncode == 2
        assert "is there but is not this set" in done.stderr
        assert mine.read_bytes() == b"years of work"

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        done = run_user("--to", tmp_path / "file" / "set.h5", **BARE)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


class TestWriting:
    """The file is whole or not there."""

    def test_a_right_file_is_left_alone_and_force_replaces_it(self, script, monkeypatch, tmp_path, capsys):
        folder, to = write_idx(tmp_path / "idx"), tmp_path / "set.h5"
        run_main(script, monkeypatch, "--idx", folder, "--to", to)
        first = to.stat()
        run_main(script, monkeypatch, "--idx", folder, "--to", to)
        assert "is there already, and right" in capsys.readouterr().out
        assert to.stat().st_ino == first.st_ino
        run_main(script, monkeypatch, "--idx", folder, "--to", to, "--force")
        assert to.stat().st_mtime_ns > first.st_mtime_ns

    def test_a_flipped_bit_is_noticed(self, script, monkeypatch, tmp_path):
        folder, to = write_idx(tmp_path / "idx"), tmp_path / "set.h5"
        run_main(script, monkeypatch, "--idx", folder, "--to", to)
        with h5py.File(to, "r+") as file:
            file["test/images"][3, 5, 7] ^= 1
        with pytest.raises(SystemExit, match="2"):
            run_main(script, monkeypatch, "--idx", folder, "--to", to)

    def test_the_same_bytes_each_time(self, script, tmp_path):
        for name in ("one", "two"):
            script.write(tmp_path / name, tiny(), chunk=4)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()

    @pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    def test_killed_while_writing(self, tmp_path, end):
        folder, to = write_idx(tmp_path / "idx"), tmp_path / "out" / "set.h5"
        program = (
            f"import os, sys; sys.path.insert(0, {str(DATA)!r}); import fashion_mnist as script\n"
            "script.sources.DIGESTS = dict.fromkeys(script.sources.DIGESTS)\n"
            "script.sources.sha256 = lambda array: None\n"
            f"script.blocks = lambda rows: [slice(0, 1), os.kill(os.getpid(), {end.value})]\n"
            f"sys.argv[1:] = ['--idx', {str(folder)!r}, '--to', {str(to)!r}]; script.main()"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
        assert done.returncode == (-end if end == signal.SIGKILL else 128 + end)
        left = [path.name for path in to.parent.iterdir()]
        assert len(left) == (end == signal.SIGKILL)
        assert all(".unfinished-" in name for name in left)


class TestCut:
    """The rule that chooses the small set."""

    def test_takes_the_lowest_keys_of_each_class(self, script):
        labels = np.arange(200, dtype=np.uint8) % 10
        images = np.repeat(np.arange(200, dtype=np.uint8), 784).reshape(200, 28, 28)
        small = script.cut({"test/images": images, "test/labels": labels}, {"test": 3}, seed=5)
        rows = small["test/images"][:, 0, 0].astype(int)
        key = [hashlib.sha256(f"5 test {row}".encode()).hexdigest() for row in range(200)]
        assert rows.tolist() == sorted(rows, key=lambda row: key[row][32:])
        for label in range(10):
            of_class = sorted((row for row in range(200) if row % 10 == label), key=lambda row: key[row][:32])
            assert set(rows[rows % 10 == label]) == set(of_class[:3])
        assert (small["test/labels"] == rows % 10).all()

    def test_mean_and_std_are_exact(self, script):
        images = np.full((2500, 28, 28), 255, np.uint8)
        assert script.mean_and_std(images) == (255.0, 0.0)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def fake_apt(folder: Path, package: Path, lists: str) -> None:
    """An apt-get and a dpkg-deb that know one package: always, or only after an update into other folders."""
    folder.mkdir()
    files = {
        "apt-get": f"""
            for last; do case $last in -oDir::State::lists=*) lists=${{last#*::lists=}};; esac; done
            case "$last" in
              update) touch "$lists/here_Packages.lz4"; exit;;
            esac
            if [ {lists} = missing ] && ! [ -e "$lists/here_Packages.lz4" ]; then
              echo "E: Unable to locate package $last"; exit 100
            fi
            case "$*" in
              *--print-uris*) echo "'http://…/set_1_all.deb' set_1_all.deb 7 SHA256:0";;
              *) echo content > set_1_all.deb;;
            esac""",
        "dpkg-deb": f"""
            [ -s "$2" ] && mkdir -p "$3/usr/share/datasets" && cp -r "{package}" "$3/usr/share/datasets/fashion-mnist"
            """,
    }
    for name, text in files.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
