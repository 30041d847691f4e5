"""Which format a file is in, by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from mpi_parallel.exchange import keras_file, onnx_file, safetensors_file
from mpi_parallel.exchange.trained import Trained
from mpi_parallel.options import InputError

WRITERS: dict[str, Callable[[Trained, Path], None]] = {
    ".onnx": onnx_file.write,
    ".safetensors": safetensors_file.write,
    ".weights.h5": keras_file.write,
}
READERS: dict[str, Callable[[Path], Trained]] = {
    ".safetensors": safetensors_file.read,
    ".weights.h5": keras_file.read,
    ".keras": keras_file.read,
}


def write(trained: Trained, path: Path) -> None:
    """Write a file in the format that its name asks for; it appears only when it is whole. Raises InputError."""
    ending = next((ending for ending in WRITERS if path.name.endswith(ending)), None)
    if ending is None:
        raise InputError(f"--to {path}: the name must end in {' or '.join(WRITERS)}")
    if not path.parent.is_dir():
        raise InputError(f"--to {path}: there is no folder {path.parent}")
    try:
        with TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as folder:
            made = Path(folder) / path.name
            WRITERS[ending](trained, made)
            for beside in set(made.parent.iterdir()) - {made}:  # the weights of a large ONNX graph
                beside.replace(path.with_name(beside.name))
            made.replace(path)
    except OSError as error:
        raise InputError(f"--to {path}: cannot be written: {error}") from None


def reader_of(path: Path) -> Callable[[Path], Trained] | None:
    """What reads a file of another program; None for names that are not of one."""
    return next((read for ending, read in READERS.items() if path.name.endswith(ending)), None)
