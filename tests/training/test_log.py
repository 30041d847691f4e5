"""What a run leaves behind in its folder, and what it refuses."""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpi_parallel.options import InputError, option
from mpi_parallel.training.log import RunFolder, logger
from tests.assembly import world


@dataclass(frozen=True)
class Group:
    """a group"""

    width: int = option(7, "how wide")


@dataclass(frozen=True)
class Config:
    """Of one group."""

    group: Group


@pytest.fixture
def make():
    """Make the folder of a run on all ranks; it is closed at the end of the test."""
    made = []

    def folder(out, progress="plain", goes_on=False):
        made.append(RunFolder(None if out is None else str(out), Config(Group()), progress, world(), goes_on))
        return made[-1]

    yield folder
    for one in made:
        one.close()


@pytest.mark.parallel([1, 2, 3])
def test_rank_0_writes_and_all_know_where(make, shared_path):
    folder = make(shared_path / "runs" / "first")
    assert folder.path == shared_path / "runs" / "first"
    folder.event("start", rank=world().rank)
    world().gather_text("")  # rank 0 has written
    assert json.loads((folder.path / "metrics.jsonl").read_text()) == {"event": "start", "rank": 0}
    assert (folder.path / "config.toml").read_text() == "[group]\nwidth = 7\n"


@pytest.mark.parallel([1, 2, 3])
def test_events_are_there_at_once(make, shared_path):
    folder = make(shared_path / "run")
    for number in range(3):
        folder.event("epoch", epoch=number)
        world().gather_text("")  # rank 0 has come here
        assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == number + 1
        world().gather_text("")


@pytest.mark.parallel([1, 2])
def test_what_is_not_finite_is_null_as_json_has_no_word_for_it(make, shared_path):
    folder = make(shared_path / "run")
    folder.event("epoch", loss=math.nan, lr=1e-3, by_phase={"data": math.inf}, list=[1.0, -math.inf])
    world().gather_text("")
    line = (folder.path / "metrics.jsonl").read_text()
    assert json.loads(line) == {
        "event": "epoch",
        "loss": None,
        "lr": 1e-3,
        "by_phase": {"data": None},
        "list": [1.0, None],
    }


@pytest.mark.parallel([1, 2, 3])
def test_a_folder_that_holds_a_run_is_refused_and_left_alone(make, shared_path):
    make(shared_path / "run").event("start")
    world().gather_text("")
    before = {path.name: path.read_bytes() for path in (shared_path / "run").iterdir()}
    with pytest.raises(InputError, match="run holds a run already: name another folder"):
        make(shared_path / "run")
    assert {path.name: path.read_bytes() for path in (shared_path / "run").iterdir()} == before


@pytest.mark.parallel([1, 2])
def test_a_folder_in_which_another_run_is_writing_is_refused(make, shared_path, monkeypatch):
    """Though it may be gone on from: the two would write into each other's checkpoints."""
    monkeypatch.setattr("mpi_parallel.training.log.PATIENCE", 0.2)
    first = make(shared_path / "run")
    first.event("step")
    with pytest.raises(InputError, match="run: another run is writing there: wait for its end"):
        make(shared_path / "run", goes_on=True)
    assert (shared_path / "run" / "metrics.jsonl").read_text() == '{"event": "step"}\n'
    first.close()
    world().meet()
    make(shared_path / "run", goes_on=True)


@pytest.mark.parallel([1, 2, 3])
def test_a_folder_that_holds_something_else_is_taken(make, shared_path):
    (shared_path / "run").mkdir(exist_ok=True)
    (shared_path / "run" / "notes.txt").write_text("mine")
    make(shared_path / "run")
    assert (shared_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parallel([1, 2, 3])
def test_a_folder_that_cannot_be_made_is_refused_on_all_ranks(make, shared_path):
    (shared_path / "file").write_text("")
    world().gather_text("")
    for out in (shared_path / "file" / "run", Path("/proc/run")):  # not even root can make that one
        with pytest.raises(InputError, match=f"--out {out}: .*"):
            make(out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parallel([1, 2, 3])
def test_a_folder_that_may_not_be_written_is_refused(make, shared_path):
    shared_path.chmod(0o555)
    with pytest.raises(InputError, match=r"--out .*run: .*Permission denied"):
        make(shared_path / "run")
    world().gather_text("")
    shared_path.chmod(0o755)


@pytest.mark.parallel([1, 2])
def test_a_disk_that_is_full_from_the_start(make, shared_path):
    (shared_path / "run").mkdir(exist_ok=True)
    world().gather_text("")
    if world().rank == 0:
        (shared_path / "run" / "config.toml").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"--out .*run: .*No space left on device"):
        make(shared_path / "run")


@pytest.mark.parallel([1, 2])
def test_a_disk_that_becomes_full_is_named_on_the_rank_that_writes(make, shared_path):
    folder = make(shared_path / "run")
    if world().rank:
        folder.event("epoch")
        logger.info("all is well here")
        return
    fill(folder._metrics)
    with pytest.raises(OSError, match=r"No space left on device: '.*run/metrics.jsonl'"):
        folder.event("epoch")
    fill(folder._handlers[1].stream)
    with pytest.raises(OSError, match=r"No space left on device: '.*run/log.txt'"):
        logger.info("epoch 1")
    logger.info("to the terminal alone")


def fill(file):
    """Let everything that is written to the file from now on meet a full disk."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file.fileno())
    os.close(full)


@pytest.mark.parallel([1, 2, 3])
def test_without_out_runs_are_numbered(make, shared_path, monkeypatch):
    monkeypatch.chdir(shared_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20300102-030405")
    paths = [make(None).path for _ in range(3)]
    assert [path.name for path in paths] == ["20300102-030405", "20300102-030405-2", "20300102-030405-3"]
    world().gather_text("")  # rank 0 has made them
    assert all((path / "metrics.jsonl").exists() for path in paths)


@pytest.mark.parallel([1, 2, 3])
def test_who_says_what_where(make, shared_path, capsys):
    folder, rank = make(shared_path / "run"), world().rank
    logger.info("info of %d", rank)
    logger.warning("warning of %d", rank)
    logger.error("error of %d", rank)
    out, err = capsys.readouterr()
    assert out == ("info of 0\n" if rank == 0 else "")
    assert err == ("warning of 0\nerror of 0\n" if rank == 0 else f"error of {rank}\n")

    folder.close()
    name = f"rank-{rank}.log" if rank else "log.txt"
    said = [line.split(maxsplit=2)[2] for line in (folder.path / name).read_text().splitlines()]
    assert said == ["info of 0"] * (rank == 0) + [f"warning of {rank}", f"error of {rank}"]


@pytest.mark.parallel([2, 3])
def test_ranks_that_have_nothing_to_warn_of_leave_no_file(make, shared_path):
    folder = make(shared_path / "run")
    logger.info("all is well")
    world().gather_text("")
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.toml", "log.txt", "metrics.jsonl"]


@pytest.mark.parallel([1, 2])
def test_progress_none_shows_nothing_and_logs_all_the_same(make, shared_path, capsys):
    folder = make(shared_path / "run", progress="none")
    logger.info("epoch 1")
    world().gather_text("")
    assert capsys.readouterr().out == ""
    assert "epoch 1" in (folder.path / "log.txt").read_text()
