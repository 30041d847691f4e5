"""The forecast of a rank's memory, against what a run of that kind takes."""

import json
from dataclasses import replace

import pytest

from mpi_parallel.training.forecast import Sizes, forecast, of_stage
from tests.launch import launch
from tests.samples import write_image_set

TOLERANCE = 0.2  # of the forecast, and
SLACK = 16 << 20  # bytes that Python, MPI and the allocator take in the course of a run
RUNS = [
    (1, ("--optimizer", "lamb", "--dropout", "0.1", "--micro-batch", "64", "--precision", "bfloat16")),
    (2, ("--merge", "window")),
    (2, ("--tensor", "2", "--optimizer", "momentum")),
    (2, ("--pipe", "2", "--optimizer", "sgd", "--batch-size", "1024")),
    (3, ("--pipe", "3", "--reproducible")),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_image_set(tmp_path_factory.mktemp("data") / "set.h5", train=1024, test=40)


@pytest.mark.parametrize(("ranks", "words"), RUNS)
def test_it_is_what_a_run_takes(data, tmp_path, ranks, words):
    train = ("-m", "mpi_parallel.train", "--data", data, "--out", tmp_path / "run", "--progress", "none")
    done = launch(ranks, *train, "--steps", "2", "--hidden", "2000", "1900", "1800", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    need, before = lines[0]["memory_forecast"], lines[0]["memory_program"]
    taken = max(lines[-1]["memory"]) - before
    assert abs(taken - need) < TOLERANCE * need + SLACK, f"{need >> 20} MiB were forecast, {taken >> 20} taken"


SIZES = Sizes((784, 4096, 4096, 4096, 10), 512, merge="flat", training_rows=60_000, image_bytes=784)


def test_it_falls_close_to_an_nth_with_the_parts_of_the_model():
    whole = forecast(SIZES, (1, 1, 1))
    for parts in (2, 4):
        assert forecast(SIZES, (1, 1, parts)).total < 1.3 * whole.total / parts
        assert forecast(SIZES, (1, parts, 1)).total < 1.4 * whole.total / parts


def test_only_the_first_stage_has_images():
    first, middle, last = (of_stage(SIZES, (1, 3, 1), stage).rows for stage in range(3))
    assert (first, middle, last) == (60_000 * 788, 60_000 * 2, 60_000 * 2)  # a label is 4 bytes, of which two have one
    assert of_stage(SIZES, (1, 1, 2), 0).rows == 30_000 * 788


def test_1f1b_holds_the_same_for_any_number_of_micro_batches_and_gpipe_more():
    def activations(schedule, batch):
        sizes = replace(SIZES, schedule=schedule, batch_size=batch, micro_batch=32)
        return of_stage(sizes, (1, 2, 1), 0).activations

    assert activations("1f1b", 256) == activations("1f1b", 4096)
    assert activations("gpipe", 4096) > 3 * activations("gpipe", 256)
