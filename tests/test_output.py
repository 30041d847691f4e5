"""Programs whose output nobody reads any more, as after `| head -1`, and names that are no text."""

import os
import subprocess
import sys

import pytest

from tests.once import once
from tests.samples import write_image_set


@once
@pytest.mark.parametrize(
    ("words", "stream", "status"),
    [
        (["mpi_parallel.inspect", "a.h5"], "stdout", 0),
        (["mpi_parallel.verify", "--help"], "stdout", 0),
        (["mpi_parallel", "--help"], "stdout", 0),
        (["mpi_parallel.inspect", "gone.h5"], "stderr", 2),
    ],
)
def test_a_reader_that_goes_away_ends_nothing(tmp_path, words, stream, status):
    """No message and the status as ever: what nobody reads goes nowhere."""
    write_image_set(tmp_path / "a.h5")
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    ended = subprocess.run([sys.executable, "-m", *words], text=True, timeout=60, cwd=tmp_path, **streams)
    os.close(writer)
    assert (ended.stdout or "") + (ended.stderr or "") == ""
    assert ended.returncode == status


def test_a_name_that_is_no_text_can_be_told(tmp_path):
    name = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff\xfe.h5")
    ended = subprocess.run(
        [sys.executable, "-m", "mpi_parallel.inspect", name], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)
    assert "\\udcff\\udcfe.h5: no such file" in ended.stderr
