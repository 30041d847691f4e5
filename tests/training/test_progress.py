"""What a person sees while it trains."""

import json
import os
import pty
import subprocess
import sys
import termios
import time

import pytest

from mpi_parallel.training.progress import SIGN_OF_LIFE, Bar, Plain, Silent, open_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    clock.now = 1000.0
    return clock


@pytest.mark.parametrize("kind", ["auto", "bar", "plain", "none"])
def test_ranks_that_do_not_speak_are_silent(kind):
    assert type(open_progress(kind, 10, speaks=False)) is Silent


@pytest.mark.parametrize(("kind", "expected"), [("none", Silent), ("plain", Plain), ("bar", Bar)])
def test_each_kind_is_had_by_its_name(kind, expected):
    progress = open_progress(kind, 10, speaks=True)
    assert type(progress) is expected
    progress.close()


@pytest.mark.parametrize(("columns", "expected"), [(None, Plain), (80, Bar)])
def test_auto_is_a_bar_on_a_terminal(monkeypatch, columns, expected):
    monkeypatch.setattr("mpi_parallel.training.progress.terminal_columns", lambda: columns)
    progress = open_progress("auto", 10, speaks=True)
    assert type(progress) is expected
    progress.close()


def test_silent_says_nothing(capsys):
    silent = Silent()
    silent.step(1, 0.5)
    silent.line("epoch 1")
    silent.close()
    assert capsys.readouterr() == ("", "")


def test_plain_prints_lines_and_no_steps(capsys):
    plain = Plain(100)
    plain.step(1, 0.5)
    plain.line("epoch 1")
    plain.step(2, 0.5)
    assert capsys.readouterr() == ("epoch 1\n", "")


def test_plain_gives_a_sign_of_life_in_a_long_epoch(capsys, clock):
    plain = Plain(100)
    for number in range(1, 10):
        clock.now += SIGN_OF_LIFE / 2.5
        plain.step(number, 0.5)
    assert capsys.readouterr().out.split("\n") == [f"  step {n}/100, loss 0.5000" for n in (3, 6, 9)] + [""]


def test_plain_gives_none_soon_after_a_line(capsys, clock):
    plain = Plain(100)
    clock.now += SIGN_OF_LIFE - 1
    plain.line("epoch 1")
    clock.now += SIGN_OF_LIFE - 1
    plain.step(1, 0.5)
    assert capsys.readouterr().out == "epoch 1\n"


def test_the_bar_counts_the_steps_and_keeps_lines_apart(capsys):
    bar = Bar(4, 60)
    for number in range(1, 5):
        bar.step(number, 0.5)
    bar.line("epoch 1")
    bar.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 1\n" in err
    assert "/4 [" in err
    assert max(map(len, err.replace("\r", "\n").split("\n"))) <= 60


def test_no_terminal_behind_a_pipe():
    read, write = os.pipe()
    assert columns_with_stderr(write) is None
    os.close(read)


@pytest.mark.parametrize("columns", [80, 132])
def test_a_terminal_has_a_width(columns):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    assert columns_with_stderr(theirs) == columns
    os.close(ours)


def columns_with_stderr(descriptor):
    """What a process finds whose stderr is this one, which is closed here."""
    program = "from mpi_parallel.training.progress import terminal_columns; print(terminal_columns())"
    found = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=descriptor, check=True)
    os.close(descriptor)
    return json.loads(found.stdout.decode().replace("None", "null"))
