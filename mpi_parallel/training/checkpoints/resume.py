"""Going on from a checkpoint: which one, whether it is whole, and of the same training, and putting it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError, flag
from mpi_parallel.training.checkpoints.checkpoint import CheckpointFile
from mpi_parallel.training.checkpoints.job import checkpoints
from mpi_parallel.training.checkpoints.reading import fill, open_together
from mpi_parallel.training.checkpoints.state import WEIGHTS, flat_arrays, stand
from mpi_parallel.training.log import logger

if TYPE_CHECKING:
    from mpi_parallel.training.run import Run

ASKED, AUTO = "--resume", "auto"
# Options that make the sequence of weights; what only says how long, how fast and where may change.
BINDING = {
    "data": ("validation", "shift", "flip", "erase"),
    "model": ("hidden", "dropout"),
    "batch": ("batch_size", "shards", "seed"),
    "optimizer": ("optimizer", "lr", "schedule", "warmup", "weight_decay", "clip_norm"),
    "device": ("precision",),
}
LEFT_OUT = ".left-out"  # ends the name of what is not gone on from


def find(run: Run, facts: dict[str, Any]) -> Path | None:
    """The checkpoint that --resume names, or with "auto" the folder's newest whole one, if any.

    All ranks together. Raises InputError, naming both sides, where data, model or order are not the checkpoint's; the
    run's folder is then as before.
    """
    asked, folder = run.config.run.resume, run.folder.checkpoints
    if asked is None:
        return None
    try:
        file = _newest(folder, run.comm) if asked == AUTO else open_together(Path(asked), run.comm, ASKED)
        if file is None:
            logger.info("no checkpoint in %s yet: starting anew", folder)
            return None
        with file:
            compare(file, facts)
            return file.path
    except InputError:
        run.folder.close()
        raise


def take_up(run: Run, path: Path) -> None:
    """Go on from the checkpoint that was found; all ranks together."""
    with CheckpointFile(path) as file:
        _load(run, file)
    stand(run, file.facts)
    if run.comm.rank == 0:
        _leave_out(run.folder.checkpoints, path, run.step)
    run.comm.meet()  # ranks that share weights have all read theirs
    run.folder.event("resume", step=run.step, **{"from": str(path)}, ranks=run.comm.size)
    logger.info("going on from %s: step %d, epoch %d", path, run.step, run.epochs + 1)


def _newest(folder: Path, comm: Communicator) -> CheckpointFile | None:
    """The newest whole checkpoint of a folder; None where there are none at all. Warns of those that are damaged."""
    mine = [path.name for path in checkpoints(folder)] if comm.rank == 0 else []
    names = comm.gather_text("\n".join(mine))[0].split()
    for name in names:
        try:
            return open_together(folder / name, comm, ASKED)
        except InputError as error:
            if comm.rank == 0:
                logger.warning("%s; trying the one before", error)
    if names:
        raise InputError(
            f"--resume auto: none of the {len(names)} checkpoints in {folder} is whole: move them away to start anew"
        )
    return None


def compare(file: CheckpointFile, ours: dict[str, Any]) -> None:
    """Raise InputError, naming both sides, where going on would not be the same training."""
    for what, here, there in differences(ours, file.facts):
        raise InputError(f"--resume {file.path}: {what} is {here} here and {there} in the checkpoint")


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What binds and is not the same: its name, ours and theirs."""
    pairs: list[tuple[str, Any, Any]] = [("the network", ours["widths"], theirs["widths"])]
    for table, keys in BINDING.items():
        pairs += [(flag(key), ours["config"][table].get(key), theirs["config"][table].get(key)) for key in keys]
    pairs.append(("--holding", ours["holding"], theirs["holding"]))
    data, other = ours["data"], theirs["data"]
    here, there = (f"{side['rows']} rows of {side['file']}, SHA-256 {side['sha256'][:16]}" for side in (data, other))
    if data["sha256"] != other["sha256"]:
        pairs.append(("the training data", here, there))
    if ours["holding"] == "streaming":
        pairs.append(("--window", *(side["config"]["data"]["window"] for side in (ours, theirs))))
    if ours["config"]["optimizer"]["schedule"] != "constant":
        pairs.append(("the number of steps, which --schedule goes by,", ours["total_steps"], theirs["total_steps"]))
    if ours["groups"]:
        pairs += [(f"--reproducible: {key}", ours[key], theirs[key]) for key in ("groups", "arithmetic")]
        pairs.append(("--reproducible: --tensor", ours["grid"]["tensor"], theirs["grid"]["tensor"]))
    return (pair for pair in pairs if pair[1] != pair[2])


def _load(run: Run, file: CheckpointFile) -> None:
    """Put this rank's parts of the arrays into the run: all of its weights, and the optimizer's state that it owns."""
    store = run.engine.store
    for kind, array in flat_arrays(run).items():
        span = slice(0, store.size) if kind == WEIGHTS else run.merger.owned
        fill(file, kind, run.engine.model, span, array[span], store.device)


def _leave_out(folder: Path, path: Path, step: int) -> None:
    """Rename what lies behind the step in the folder: damaged, or of a way that is not gone on."""
    for other in checkpoints(folder):
        if other.name > f"step-{step:08d}.h5" and other != path:
            other.replace(other.with_name(other.name + LEFT_OUT))
