"""--layout auto and the check of a rank's memory, as a user meets them."""

import json
import re

import pytest

from mpi_parallel.training.forecast import Sizes, forecast
from mpi_parallel.training.planning import Speeds, estimated, possible
from tests.launch import launch
from tests.samples import write_image_set

TRAIN = ("-m", "mpi_parallel.train", "--steps", "1", "--progress", "plain")
LARGE = ("--hidden", "2500", "2500", "--batch-size", "64")
BUDGET = "150M"  # of which the program takes some 30 to 50, and the whole network 135 more


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_image_set(tmp_path_factory.mktemp("data") / "set.h5", train=120, test=40)


def test_a_network_that_is_too_large_for_one_rank_is_refused_before_anything_is_made(data, tmp_path):
    alone = launch(1, *TRAIN, "--data", data, "--out", tmp_path / "alone", *LARGE, "--rank-memory", BUDGET)
    assert alone.returncode == 2
    assert re.search(
        r"a rank needs \d+ MiB \(weights .*and --rank-memory leaves \d+ MiB for it: use more", alone.stderr
    )
    assert not (tmp_path / "alone").exists()


@pytest.mark.parametrize("words", [("--tensor", "2"), ("--pipe", "2")])
def test_it_trains_on_two(data, tmp_path, words):
    done = launch(2, *TRAIN, "--data", data, "--out", tmp_path / "run", *LARGE, *words, "--rank-memory", BUDGET)
    assert done.returncode == 0, done.stdout + done.stderr
    start, *_, end = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert start["grid"]["pipe"] * start["grid"]["tensor"] == 2
    assert max(end["memory"]) < 1.15 * (150 << 20)


def test_auto_says_why(data, tmp_path):
    done = launch(2, *TRAIN, "--data", data, "--out", tmp_path / "run", *LARGE, "--layout", "auto", "--merge", "flat",
                  "--rank-memory", BUDGET)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("layout"))
    assert "data 2 x pipe 1 x tensor 1 would take" in line
    assert re.search(r"2 of 3 grids fit in \d+ MiB; estimated [\d.]+ ms a step \(others: .*\), from products of", line)


def test_where_no_grid_fits_it_says_so(data, tmp_path):
    done = launch(2, *TRAIN, "--data", data, "--out", tmp_path / "run", "--hidden", "9000", "9000", "--layout", "auto",
                  "--rank-memory", "200M")  # fmt: skip
    assert done.returncode == 2
    assert "--layout auto: no grid of 2 ranks fits. data 1 x pipe" in done.stderr


@pytest.mark.parametrize("words", [("--tensor", "2"), ("--pipe", "2")])
def test_auto_and_a_grid_that_is_given_are_refused(data, words):
    done = launch(2, *TRAIN, "--data", data, "--layout", "auto", *words)
    assert done.returncode == 2
    assert "--layout auto proposes the grid itself, but --tensor" in done.stderr


def test_inspect_tells_what_a_rank_would_need(data):
    done = launch(None, "-m", "mpi_parallel.inspect", data, "--ranks", "4", "--hidden", "500", "400")
    assert done.returncode == 0, done.stderr
    told = done.stdout[done.stdout.index("memory") :]
    assert "for 12 - 500 - 400 - 3 with adam in batches of 256:" in told
    assert len(re.findall(r"data \d x pipe \d x tensor \d: [\d.]+ MiB \(weights", told)) == 4  # 3 classes, 3 layers
    assert "data 1 x pipe 2 x tensor 2" in told


SIZES = Sizes((784, 2048, 2048, 10), 512, training_rows=10_000, image_bytes=784)


def test_slow_messages_speak_against_what_sends_more():
    fast, slow = (Speeds(5e10, speed, latency) for speed, latency in ((1e11, 1e-6), (1e8, 1e-3)))
    assert estimated(SIZES, (1, 1, 4), fast) < 1.2 * estimated(SIZES, (4, 1, 1), fast)
    assert estimated(SIZES, (1, 1, 4), slow) > 3 * estimated(SIZES, (1, 1, 4), fast)
    assert estimated(SIZES, (1, 2, 1), slow) < 3 * estimated(SIZES, (1, 2, 1), fast)
    assert estimated(SIZES, (4, 1, 1), fast) < estimated(SIZES, (1, 1, 1), fast)


def test_every_grid_that_can_be_is_looked_at():
    assert [grid for grid, _ in possible(SIZES, 4)] == [
        (4, 1, 1),
        (2, 1, 2),
        (2, 2, 1),
        (1, 1, 4),
        (1, 2, 2),
    ]  # fmt: skip, four stages are more than the layers
    assert dict(possible(SIZES, 4))[2, 1, 2] == forecast(SIZES, (2, 1, 2))
