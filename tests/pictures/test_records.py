"""What pictures are drawn from."""

import numpy as np
import pytest

from mpi_parallel.options import InputError
from mpi_parallel.pictures.records import GALLERY, Gallery, Record, read_benchmark, read_trace
from tests.once import once

pytestmark = once


def test_events_by_their_kind(run):
    record = run()
    assert record.start["ranks"] == 2
    assert [event["epoch"] for event in record.epochs] == [1, 2, 3]
    assert record.end["test_accuracy"] == 0.8765


def test_of_an_epoch_that_was_repeated_the_later_counts(run):
    record = run()
    record.events.insert(3, {**record.epochs[1], "train_loss": 7.0})
    assert [event["epoch"] for event in record.epochs] == [1, 2, 3]
    assert record.epochs[1]["train_loss"] == 7.0


def test_a_run_that_has_left_little(run):
    record = run(epochs=0, without=("end", "gallery", "trace"))
    assert (record.end, record.epochs, record.gallery, record.spans) == ({}, [], None, [])


def test_a_gallery_comes_back_as_it_was(run):
    record = run()
    gallery, again = record.gallery, Gallery.read(record.path / GALLERY)
    assert again.classes == ("a<b", "bee", "sea")
    assert again.shape == (3, 4)
    for name in ("confusion", "images", "labels", "predicted", "probability", "weights"):
        np.testing.assert_array_equal(getattr(again, name), getattr(gallery, name))


def test_spans_of_a_trace_in_seconds(run):
    spans = read_trace(run(ranks=1).path / "trace.json")
    assert [span.name for span in spans[:2]] == ["step 1", "forward"]
    forward = spans[1]
    assert (forward.rank, forward.lane, forward.step, forward.micro) == (0, "main", 1, 0)
    assert (forward.begun, forward.ended) == pytest.approx((10e-6, 18e-6))


@pytest.mark.parametrize("content", [None, "", "{", '["event"]\nnothing'])
def test_a_folder_without_a_run_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content or "no JSON")
    with pytest.raises(InputError, match=f"{tmp_path} is not the folder of a run"):
        Record(tmp_path)


def test_files_that_are_none_of_ours_are_named(tmp_path):
    (tmp_path / "file.json").write_text("[1]")
    with pytest.raises(InputError, match=r"file.json is not the JSON of a benchmark"):
        read_benchmark(tmp_path / "file.json")
    with pytest.raises(InputError, match=r"file.json is not a trace"):
        read_trace(tmp_path / "file.json")
