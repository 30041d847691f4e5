"""Signals before there is a step to stop after: all ranks leave with 75, and the same command goes on or begins."""

import json
import os
import signal
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from mpi_parallel.signals import is_training
from tests.launch import launch, processes
from tests.samples import write_image_set

FAULTS = {  # rank, place, signal; whether there is a run by then, which takes a step
    "before anything": ("1", "opening:1", "SIGTERM", False),
    "while reading": ("0", "reading:1", "SIGINT", False),
    "while choosing a merger": ("1", "merging:1", "SIGUSR1", False),
    "when the folder is made": ("1", "folder:1", "SIGUSR2", True),
}
RANKS = 2


def options(out):
    return ["--data", out.parent / "set.h5", "--out", out, "--batch-size", "8", "--epochs", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("early")
    write_image_set(folder / "set.h5")
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    """How the jobs with these signals ended, and one that is still busy with its data long after its signal."""

    def job(name):
        fault = FAULTS[name][:3] if name in FAULTS else ("1", "reading:1", "dawdle")
        tail = [*options(folder / name.replace(" ", "-")), "--resume", "auto", "--no-report"]
        return launch(RANKS, "-m", "tests.faulty", *fault, *tail)

    names = [*FAULTS, "dawdling"]
    with ThreadPoolExecutor(3) as pool:
        return dict(zip(names, pool.map(job, names), strict=True))


def events(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", FAULTS)
def test_a_signal_to_one_rank_is_a_stop_of_all(ended, folder, name):
    job, out, (_, _, sent, begun) = ended[name], folder / name.replace(" ", "-"), FAULTS[name]
    assert job.returncode == 75, job.stderr
    assert "Traceback" not in job.stderr
    if begun:
        end = events(out)[-1]
        assert (end["event"], end["reason"], end["step"]) == ("end", "signal", 1)
        assert (out / "checkpoints" / "step-00000001.h5").exists()
    else:
        assert job.stderr.count(f"asked to stop by {sent} before training began: nothing is lost") == 1
        assert not out.exists()


def test_data_that_take_too_long_to_read_are_not_waited_for(ended):
    job = ended["dawdling"]
    assert job.returncode == 75, job.stderr
    assert "watchdog: asked to stop and still reading the data; nothing is lost: ending the job" in job.stderr


def test_the_same_command_goes_on(ended, folder):
    out = folder / "when-the-folder-is-made"
    again = launch(RANKS, "-m", "mpi_parallel.train", *options(out), "--resume", "auto", "--no-report")
    assert again.returncode == 0, again.stderr
    told = events(out)
    assert [event["step"] for event in told if event["event"] == "resume"] == [1]
    assert (told[-1]["event"], told[-1]["reason"]) == ("end", "finished")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_from_its_first_moment_on(folder, number):
    """While it imports, before there is an MPI: as soon as the process listens at all."""
    mark = {"MPI_PARALLEL_TEST_EARLY": uuid.uuid4().hex}
    sent = []

    def watch():
        until = time.monotonic() + 30
        while not sent and time.monotonic() < until:
            sent.extend(pid for pid in processes(mark["MPI_PARALLEL_TEST_EARLY"]) if listens(pid))
            time.sleep(0.001)
        os.kill(sent[0], number)

    watcher = threading.Thread(target=watch)
    watcher.start()
    job = launch(RANKS, "-m", "mpi_parallel.train", *options(folder / "first"), env=mark)
    watcher.join()
    assert job.returncode == 75, job.stderr
    assert f"asked to stop by {number.name}" in job.stderr
    assert "Traceback" not in job.stderr


def listens(pid):
    """Whether a process is a rank that has come to the last handler; Python has one for SIGINT from the start."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if words[:3] == [sys.executable, "-m", "mpi_parallel.train"]:
            status = Path(f"/proc/{pid}/status").read_text()
            return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGUSR2 - 1) & 1)
    return False


@pytest.mark.parametrize(
    ("argv", "original", "trains"),
    [
        (["-m", "--data", "set.h5"], ["python", "-u", "-m", "mpi_parallel.train", "--data", "set.h5"], True),
        (["-m", "train"], ["python", "-m", "mpi_parallel", "train"], True),
        (["/bin/mpi-parallel", "train", "--help"], ["python", "/bin/mpi-parallel", "train", "--help"], True),
        (["-m", "train"], ["python", "-m", "mpi_parallel.plot", "train"], False),
        (["-m"], ["python", "-m", "pytest"], False),
        (["/bin/mpi-parallel", "plot", "train"], ["python", "/bin/mpi-parallel", "plot", "train"], False),
        (["train.py"], ["python", "train.py"], False),
        ([""], ["python"], False),
    ],
)
def test_which_programs_listen(monkeypatch, argv, original, trains):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert is_training() is trains
