"""verify: the proof for users that weights do not depend on the ranks."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from mpi_parallel import verify
from mpi_parallel.options import InputError
from mpi_parallel.options.command_line import parse
from tests.once import once


@once
def test_ranks_agree_to_the_bit_and_the_table_shows_it():
    done = subprocess.run(
        [sys.executable, "-m", "mpi_parallel.verify", "--ranks", "1,2", "--steps", "15", "--options",
         "--optimizer adamw --dropout 0.2 --clip-norm 0.5 --batch-size 250"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line[7:27].strip() for line in lines[1:5]] == ["1 x 1 x 1", "2 x 1 x 1", "1 x 2 x 1", "1 x 1 x 2"]
    assert len({line.split()[-1] for line in lines[1:4]}) == 1
    assert lines[5] == "the same weights, bit for bit for each of 2 ways to cut layers"
    assert lines[6].startswith("with cut layers the losses agree: ")
    assert lines[7].startswith("gradients and weights of a step agree with one rank's: ")
    assert lines[8].startswith("gradients and weights of a step agree with a float64 network's: ")


@once
def test_gradients_on_six_and_eight_ranks_are_those_of_one_and_of_float64(tmp_path, capsys):
    options = parse(verify.VerifyConfig, [], "verify", "").verify
    assert verify._gradients_agree(options, [(1, 3, 2), (2, 2, 2), (1, 8, 1)], tmp_path)
    assert capsys.readouterr().out.count("agree with") == 2


@pytest.mark.parametrize(("apart", "told"), [(1e-3, "1.0e-03"), (np.nan, "nan")])
def test_gradients_that_differ_are_told_and_fail(apart, told, monkeypatch, capsys, tmp_path):
    def one_step(options, grid, data, out):
        number = 1 + apart * (grid[1] - 1) if grid[1] > 1 else 1.0
        return {"v/W0": np.full((2, 2), number), "W0": np.ones((2, 2)), "b0": np.zeros(2)}

    monkeypatch.setattr(verify, "_one_step", one_step)
    monkeypatch.setattr(verify, "_plain", lambda data, alone: alone)
    options = parse(verify.VerifyConfig, ["--data", "mine.h5"], "verify", "").verify
    assert verify._gradients_agree(options, [(2, 1, 1)], tmp_path)
    assert not verify._gradients_agree(options, [(1, 2, 1)], tmp_path)
    out = capsys.readouterr().out
    assert f"DIFFER from one rank's: {told} apart, 2e-05 allowed" in out
    assert f"DIFFER from a float64 network's: {told} apart" in out


def test_weights_that_differ_are_told_and_fail(monkeypatch, capsys, tmp_path):
    def run(options, grid, data, out, steps):
        return {"test_loss": 1.0, "test_accuracy": 0.5, "weights_sha256": f"{min(grid[0], 2)}" * 64}

    monkeypatch.setattr(verify, "_run", run)
    monkeypatch.setattr(verify, "_gradients_agree", lambda *_: True)
    assert verify.main(["--ranks", "1,2,3", "--layouts", "data"]) == 1
    assert capsys.readouterr().out.endswith("THE WEIGHTS DIFFER\n")
    assert verify.main(["--ranks", "2,3", "--layouts", "data"]) == 0


@pytest.mark.parametrize(("apart", "told"), [(1e-4, "1.0e-04"), (np.nan, "nan")])
def test_a_loss_that_differs_where_layers_are_cut_is_told_and_fails(apart, told, monkeypatch, capsys):
    def run(options, grid, data, out, steps):
        return {
            "test_loss": {1: 1.0, 2: 1.0, 4: 1.0 + apart}[grid[2]],
            "test_accuracy": 0.5,
            "weights_sha256": f"{grid[2]}" * 64,
        }

    monkeypatch.setattr(verify, "_run", run)
    monkeypatch.setattr(verify, "_gradients_agree", lambda *_: True)
    assert verify.main(["--ranks", "1,2,4"]) == 1
    assert capsys.readouterr().out.endswith(f"with cut layers the losses DIFFER: {told} apart, 1e-05 allowed\n")


@once
def test_a_file_of_ones_own_is_trained_on_with_the_options_given_for_it(tmp_path):
    path = tmp_path / "mine.h5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["pictures"] = random.integers(0, 255, (90, 5, 5)).astype(np.uint8)
        file["kinds"] = np.arange(90) % 3
    done = subprocess.run(
        [sys.executable, "-m", "mpi_parallel.verify", "--ranks", "1", "--steps", "2", "--data", str(path), "--options",
         "--images pictures --labels kinds --batch-size 16"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gradients and weights of a step agree with a float64 network's: " in done.stdout


@once
@pytest.mark.parametrize("merge", ["auto", "exact"])
def test_odd_numbers_of_ranks_beyond_those_of_the_other_tests_agree(merge):
    done = subprocess.run(
        [sys.executable, "-m", "mpi_parallel.verify", "--ranks", "1,5,7", "--layouts", "data", "--steps", "6",
         "--options", f"--merge {merge} --groups 8"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same weights, bit for bit\n" in done.stdout


def test_every_factorisation_is_run():
    assert verify.grids_of(4, "data") == [(4, 1, 1)]
    for ranks in (1, 2, 3, 4, 6, 8):
        grids = verify.grids_of(ranks, "all")
        assert len(set(grids)) == len(grids) == sum(len(factors(n)) for n in factors(ranks))
        assert {d * p * t for d, p, t in grids} == {ranks}


def factors(n):
    return [k for k in range(1, n + 1) if n % k == 0]


@pytest.mark.parametrize("ranks", ["", "0", "1,x", "2,-1"])
def test_bad_numbers_of_ranks(ranks):
    with pytest.raises(InputError, match="--ranks"):
        verify.main(["--ranks", ranks])


def test_a_run_that_fails_is_shown():
    with pytest.raises(InputError, match="no-such-file"):
        verify.main(["--ranks", "1", "--data", "no-such-file.h5", "--launcher", "env"])
