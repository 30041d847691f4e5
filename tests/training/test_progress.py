"""What a person sees while it trains."""

import json
import os
import pty
import subprocess
import sys
import termios
import time

import pytest

from mpi_parallel.training import progress
from mpi_parallel.training.progress import (
    SIGN_OF_LIFE,
    Bar,
    Plain,
    Silent,
    duration,
    open_progress,
    painted,
    wants_colours,
)


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
    plain = Plain(100, batch=256)
    for number in range(1, 10):
        clock.now += SIGN_OF_LIFE / 2.5
        plain.step(number, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"  step {n}/100" for n in (3, 6, 9)]
    assert lines[0] == "  step 3/100, loss 0.5000, 21 samples/s, 19:24 left"  # a step of 256 rows in 12 s


def test_plain_gives_none_soon_after_a_line(capsys, clock):
    plain = Plain(100)
    clock.now += SIGN_OF_LIFE - 1
    plain.line("epoch 1")
    clock.now += SIGN_OF_LIFE - 1
    plain.step(1, 0.5)
    assert capsys.readouterr().out == "epoch 1\n"


def test_the_bar_counts_the_steps_and_keeps_lines_apart(capsys, monkeypatch):
    monkeypatch.setattr(progress, "BETWEEN_RATES", 0.0)
    bar = Bar(4, 80, batch=256)
    for number in range(1, 5):
        bar.step(number, 0.5)
        time.sleep(0.12)  # tqdm draws ten times a second
    bar.line("epoch 1")
    bar.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 1\n" in err
    assert "/4 [" in err
    assert "samples/s, loss 0.5000" in err
    assert "[0 samples/s" not in err.replace(", 0 ", "[0 "), "a rate that is not known yet is not told"
    assert "\x1b[3" not in err  # no colours but where they were asked for
    assert max(map(len, err.replace("\r", "\n").split("\n"))) <= 80


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


def test_lines_on_a_terminal_are_coloured(capsys):
    bar = Bar(4, 80, colours=True)
    bar.line("finished after 4 steps")
    bar.close()
    assert "\x1b[32mfinished after 4 steps\x1b[0m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("epoch 1/2  loss 0.5000  accuracy 0.7500", "epoch 1/2  loss 0.5000  accuracy <b>0.7500</b>"),
        ("epoch 1/2  validation 0.5000 0.8000  9 samples/s", "epoch 1/2  validation 0.5000 <b>0.8000</b>  9 samples/s"),
        ("kept in     runs/first", "<c>kept in</b>     runs/first"),
        ("mpi_parallel 0.1.0, Python 3.11", "mpi_parallel 0.1.0, Python 3.11"),
    ],
)
def test_what_stands_out(line, expected):
    assert painted(line).replace("\x1b[1m", "<b>").replace("\x1b[34m", "<c>").replace("\x1b[0m", "</b>") == expected


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_who_wants_no_colours_gets_none(monkeypatch, environment, wanted):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wants_colours() is wanted


@pytest.mark.parametrize(("seconds", "said"), [(3.21, "3.2 s"), (245, "4:05"), (3723.4, "1:02:03")])
def test_durations(seconds, said):
    assert duration(seconds) == said
