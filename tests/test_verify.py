"""verify: the proof for users that weights do not depend on the ranks."""

import subprocess
import sys

import pytest

from mpi_parallel import verify
from mpi_parallel.options import InputError


def test_ranks_agree_to_the_bit_and_the_table_shows_it():
    done = subprocess.run(
        [sys.executable, "-m", "mpi_parallel.verify", "--ranks", "1,3", "--steps", "15", "--options",
         "--optimizer adamw --dropout 0.2 --clip-norm 0.5 --batch-size 250"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["1", "3"]
    assert len({line.split()[3] for line in lines[1:3]}) == 1
    assert lines[-1] == "the same weights, bit for bit"


def test_weights_that_differ_are_told_and_fail(monkeypatch, capsys, tmp_path):
    def run(options, ranks, data, out):
        return {"test_loss": 1.0, "test_accuracy": 0.5, "weights_sha256": f"{min(ranks, 2)}" * 64}

    monkeypatch.setattr(verify, "_run", run)
    assert verify.main(["--ranks", "1,2,3"]) == 1
    assert capsys.readouterr().out.endswith("THE WEIGHTS DIFFER\n")
    assert verify.main(["--ranks", "2,3"]) == 0


@pytest.mark.parametrize("ranks", ["", "0", "1,x", "2,-1"])
def test_bad_numbers_of_ranks(ranks):
    with pytest.raises(InputError, match="--ranks"):
        verify.main(["--ranks", ranks])


def test_a_run_that_fails_is_shown():
    with pytest.raises(InputError, match="no-such-file"):
        verify.main(["--ranks", "1", "--data", "no-such-file.h5", "--launcher", "env"])
