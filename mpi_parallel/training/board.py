"""`--tensorboard`: the figures of metrics.jsonl as event files, for `tensorboard --logdir runs`.

Written by tensorboardX, which is small and well kept; TensorBoard itself brings a web server and gRPC, which a compute
node has no use for. It is needed only where the curves are looked at.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mpi_parallel.options import InputError

# The names of curves by the keys of an event; the part before the slash is the group in which TensorBoard shows them.
CURVES = {
    "train_loss": "loss/train",
    "validation_loss": "loss/validation",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "validation_accuracy": "accuracy/validation",
    "test_accuracy": "accuracy/test",
    "samples_per_second": "speed/samples_per_second",
    "lr": "speed/learning_rate",
}
DELAY = 2  # seconds until what was told is in the file; the library's thread writes


class Board(Protocol):
    """Hears of the events of a run."""

    def tell(self, name: str, facts: dict[str, Any]) -> None:
        """An event, as in metrics.jsonl."""

    def close(self) -> None:
        """Nothing more will come."""


class NoBoard:
    """The twin on ranks that do not write, and where nobody asks."""

    def tell(self, name: str, facts: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Writes event files into the folder `tensorboard` of a run; a run that goes on adds a file."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter  # here, because only one rank of some runs writes

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), flush_secs=DELAY)

    def tell(self, name: str, facts: dict[str, Any]) -> None:
        """Curves of an epoch or of the end, by step; of the start the configuration, as text."""
        if name == "start":
            lines = (f"    {key} = {value}" for group in facts["config"].values() for key, value in group.items())
            self._writer.add_text("configuration", "\n".join(lines))
        for key, curve in CURVES.items():
            if isinstance(facts.get(key), float):
                self._writer.add_scalar(curve, facts[key], facts["step"])
        for phase, seconds in facts.get("seconds_by_phase", {}).items():
            self._writer.add_scalar(f"seconds_by_phase/{phase}", seconds, facts["step"])

    def close(self) -> None:
        self._writer.close()


def open_board(asked: bool, folder: Path, writes: bool) -> Board:
    """What `--tensorboard` asks for. Raises InputError, on all ranks alike, where the library is not there."""
    if not asked:
        return NoBoard()
    if find_spec("tensorboardX") is None:
        raise InputError("--tensorboard needs tensorboardX: pip install 'mpi_parallel[tensorboard]'")
    return TensorBoard(folder) if writes else NoBoard()
