"""Writing past the page cache, where the file system lets us, and everything in its place where it does not."""

import errno
import os
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpi_parallel.training.checkpoints import disk
from mpi_parallel.training.checkpoints.disk import LEAST, PAGE, Output

SIZE = 5 * PAGE + 100


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, SIZE), max_size=4), st.sampled_from([PAGE, 2 * PAGE]), st.randoms())
def test_ranks_put_their_parts_in_place(tmp_path, monkeypatch, cuts, buffer, random):
    """Cut anywhere, written by two in any order, a page of two parts too."""
    monkeypatch.setattr(disk, "LEAST", 1)
    monkeypatch.setattr(disk, "BUFFER", buffer)
    expected = np.random.default_rng(1).bytes(SIZE)
    parts = list(pairwise(sorted({0, *cuts, SIZE})))
    random.shuffle(parts)
    path = tmp_path / "parts"
    path.unlink(missing_ok=True)
    with closing(Output(path, SIZE)) as one, closing(Output(path, SIZE)) as other:
        for number, (start, stop) in enumerate(parts):
            (one, other)[number % 2].write(memoryview(expected)[start:stop], start)
        one.sync()
    assert path.read_bytes() == expected


def flags_of(file):
    """Of an open file, as the kernel tells them."""
    with open(f"/proc/self/fdinfo/{file}") as told:
        return int(next(line for line in told if line.startswith("flags")).split()[1], 8)


def test_whole_pages_go_past_the_cache_and_their_ends_through_it(tmp_path, monkeypatch):
    put, calls = os.pwrite, []

    def noted(file, data, offset):
        calls.append((bool(flags_of(file) & os.O_DIRECT), offset, len(data)))
        return put(file, data, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    data = memoryview(np.random.default_rng(1).bytes(2 * LEAST))
    with closing(Output(tmp_path / "file", 3 * LEAST)) as output:
        direct = output._direct is not None
        output.write(data, 10)
        output.write(data[:100], LEAST * 5 // 2)
    pages = 2 * LEAST // PAGE * PAGE - PAGE
    if direct:
        assert calls[:3] == [(False, 10, PAGE - 10), (True, PAGE, pages), (False, PAGE + pages, 10)]
    assert calls[-1] == (False, LEAST * 5 // 2, 100), "what is small goes through the cache"
    assert (tmp_path / "file").read_bytes()[10 : 10 + 2 * LEAST] == data


@pytest.mark.parametrize("refused", ["open", "pwrite"])
def test_a_file_system_without_direct_writing(tmp_path, monkeypatch, refused):
    """Some refuse the file, some the writing."""
    call = getattr(os, refused)

    def unlike(what, *others):
        flags = others[0] if refused == "open" else flags_of(what)
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return call(what, *others)

    monkeypatch.setattr(os, refused, unlike)
    data = memoryview(np.random.default_rng(1).bytes(3 * LEAST))
    with closing(Output(tmp_path / "file", 3 * LEAST + 5)) as output:
        output.write(data[:LEAST], 5)
        output.write(data[LEAST:], 5 + LEAST)
        output.sync()
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == bytes(5) + data


def test_other_errors_are_told(tmp_path, monkeypatch):
    def full(file, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(Output(tmp_path / "file", LEAST)) as output:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            output.write(memoryview(bytes(LEAST)), 0)
    with pytest.raises(FileNotFoundError):
        Output(tmp_path / "none" / "file", 1)
