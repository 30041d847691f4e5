"""Give a trained network to other programs: `python -m mpi_parallel.export --checkpoint runs/NAME --to model.onnx`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpi_parallel.exchange import registry
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import option
from mpi_parallel.options.command_line import parse
from mpi_parallel.training.checkpoints.saved import load

SENTENCE = "Export a trained network as ONNX, safetensors (named as in PyTorch) or weights of Keras."


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """what goes where"""

    checkpoint: str = option(
        ..., "a run's folder (its best checkpoint, else the newest), a checkpoint, or exported weights", name="RUN"
    )
    to: str = option(
        ..., "file to write; its name chooses the format: .onnx, .safetensors or .weights.h5 (Keras)", name="FILE"
    )
    raw: bool = option(
        False, "make the standardisation part of the first layer, so that the weights take raw pixels; in ONNX the "
        "graph does that in any case",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """All options of `python -m mpi_parallel.export`."""

    export: ExportOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Rank 0 reads and writes; the exit status."""
    options = parse(ExportConfig, arguments, "mpi_parallel.export", SENTENCE, speaks=world.rank == 0).export
    if world.rank == 0:
        trained = load(options.checkpoint)
        trained = trained.folded() if options.raw else trained
        registry.write(trained, Path(options.to))
        shape, widths = " x ".join(map(str, trained.image_shape)), " - ".join(map(str, trained.widths))
        pixels = "standardised" if trained.mean is not None and not options.to.endswith(".onnx") else "raw"
        print(f"{options.to}: {widths}; takes {pixels} images of {shape}, gives logits", flush=True)
    world.meet()
    return 0


if __name__ == "__main__":
    launch(main)
