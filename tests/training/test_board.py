"""The event files of --tensorboard, read back record by record (TFRecord: length, its CRC, data, its CRC)."""

import struct
import sys
import time

import pytest

from mpi_parallel.options import InputError
from mpi_parallel.training import board
from mpi_parallel.training.board import NoBoard, TensorBoard, open_board

EPOCH = {
    "step": 47, "train_loss": 0.5, "validation_loss": None, "train_accuracy": 0.75, "samples_per_second": 1000.0,
    "lr": 1e-3, "seconds_by_phase": {"data": 0.25},
}  # fmt: skip


def scalars(folder):
    """(name, step, value) of every scalar in the event files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while len(data) > 8 and len(data) >= 16 + (length := struct.unpack("<Q", data[:8])[0]):
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    yield value.tag, event.step, round(value.simple_value, 6)


def test_curves_by_step(tmp_path):
    shown = TensorBoard(tmp_path)
    shown.tell("start", {"config": {"model": {"hidden": [8]}}})
    shown.tell("epoch", EPOCH)
    shown.tell("end", {"step": 94, "test_accuracy": 0.5, "test_loss": 1.5})
    shown.close()
    assert set(scalars(tmp_path / "tensorboard")) == {
        ("loss/train", 47, 0.5), ("accuracy/train", 47, 0.75), ("speed/samples_per_second", 47, 1000.0),
        ("speed/learning_rate", 47, 0.001), ("seconds_by_phase/data", 47, 0.25), ("accuracy/test", 94, 0.5),
        ("loss/test", 94, 1.5),
    }  # fmt: skip


def test_what_was_told_is_there_while_the_run_goes_on(tmp_path):
    shown = TensorBoard(tmp_path)
    shown.tell("epoch", EPOCH)
    deadline = time.monotonic() + 10
    while not (written := set(scalars(tmp_path / "tensorboard"))) and time.monotonic() < deadline:
        time.sleep(0.02)  # a thread of the library writes
    assert ("loss/train", 47, 0.5) in written
    shown.close()


def test_only_who_writes_needs_a_file(tmp_path):
    for nobody in (open_board(False, tmp_path, True), open_board(True, tmp_path, False)):
        assert type(nobody) is NoBoard
        nobody.tell("epoch", EPOCH)
        nobody.close()
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"pip install 'mpi_parallel\[tensorboard\]'"):
        open_board(True, tmp_path, True)
