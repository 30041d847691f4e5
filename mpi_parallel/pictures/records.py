"""What pictures are drawn from: the records that a run leaves in its folder, and the JSON of benchmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpi_parallel.options import InputError
from mpi_parallel.pictures.whole import whole

GALLERY = "gallery.h5"  # in a run's folder: what its pictures need beside metrics.jsonl and trace.json


@dataclass(frozen=True)
class Span:
    """A complete event of a trace, in seconds."""

    rank: int
    lane: str
    name: str
    begun: float
    ended: float
    step: int
    micro: int | None


@dataclass(frozen=True)
class Gallery:
    """What a run keeps of its final evaluation and of its weights, for people to look at."""

    classes: tuple[str, ...]
    shape: tuple[int, ...]  # of an image: (H, W[, C]), or (features,)
    confusion: NDArray[np.int64]  # (K, K): rows are the true classes, columns the predicted ones
    images: NDArray[Any]  # (M, *shape): the mistakes that the network was surest of, the surest first
    labels: NDArray[np.int64]  # (M,) what they are
    predicted: NDArray[np.int64]  # (M,) what they were taken for
    probability: NDArray[np.float64]  # (M,) that it gave to that
    weights: NDArray[np.float32]  # (features, units): of the first units of the first layer

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        with whole(path) as part, h5py.File(part, "w") as file:
            for name in ("confusion", "images", "labels", "predicted", "probability", "weights"):
                file[name] = getattr(self, name)
            file.attrs["classes"], file.attrs["shape"] = list(self.classes), list(self.shape)

    @classmethod
    def read(cls, path: Path) -> Gallery:
        """What `write` wrote."""
        with h5py.File(path, "r") as file:
            arrays = {name: item[()] for name, item in file.items()}
            classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in file.attrs["classes"])
            return cls(classes, tuple(map(int, file.attrs["shape"])), **arrays)


class Record:
    """What a run has left in its folder."""

    def __init__(self, path: Path) -> None:
        """Read metrics.jsonl; the rest is read when it is asked for. Raises InputError where there is no run."""
        self.path, self.name = path, path.resolve().name
        try:
            lines = (path / "metrics.jsonl").read_text("utf-8").splitlines()
            self.events: list[dict[str, Any]] = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not the folder of a run: {error}") from None

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, in their order."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def start(self) -> dict[str, Any]:
        """The latest start event: a run that was continued has several."""
        return (self.of("start") or [{}])[-1]

    @property
    def end(self) -> dict[str, Any]:
        """The end event; empty where the run has not ended."""
        return (self.of("end") or [{}])[-1]

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The epoch events, one an epoch: of one that was repeated after a restart the later."""
        return list({event["epoch"]: event for event in self.of("epoch")}.values())

    @property
    def gallery(self) -> Gallery | None:
        """What the run kept for pictures, where it did."""
        path = self.path / GALLERY
        return Gallery.read(path) if path.exists() else None

    @property
    def spans(self) -> list[Span]:
        """The spans of its trace, by time; none where it was not traced."""
        path = self.path / "trace.json"
        return read_trace(path) if path.exists() else []


def read_trace(path: Path) -> list[Span]:
    """The spans of a trace of ours. Raises InputError where it is none."""
    try:
        events = json.loads(path.read_text("utf-8"))["traceEvents"]
        lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
        spans = [
            Span(
                rank=e["pid"], lane=lanes[e["pid"], e["tid"]], name=e["name"], begun=1e-6 * e["ts"],
                ended=1e-6 * (e["ts"] + e["dur"]), step=e["args"]["step"], micro=e["args"].get("micro"),
            )
            for e in events
            if e["ph"] == "X"
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a trace of mpi_parallel: {error!r}") from None
    return sorted(spans, key=lambda span: span.begun)


def read_benchmark(path: Path) -> dict[str, Any]:
    """The figures of `benchmark ... --to FILE.json`. Raises InputError where it is no JSON object."""
    try:
        figures = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not the JSON of a benchmark: {error}") from None
    if not isinstance(figures, dict):
        raise InputError(f"{path} is not the JSON of a benchmark")
    return figures
