"""What `--device auto` and `--merge auto` would take here, and why."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

from mpi_parallel.device import Device, Host, open_device
from mpi_parallel.doctor.report import Section
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.mlp import parameter_count
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.nn.store import ParameterStore
from mpi_parallel.options import InputError
from mpi_parallel.result_merging.automatic import LARGEST, open_merger


def device_of(asked: str, node_rank: int) -> tuple[Device, str, str | None]:
    """The device that a run would take here, why, and what is wrong where it cannot be had."""
    if asked == "cpu":
        return Host(), "--device cpu asks for it", None
    try:
        return open_device("cuda", node_rank), "there is a GPU for the rank", None
    except InputError as error:
        reason = str(error).removeprefix("--device cuda: ")
        return Host(), reason, (f"--device cuda: {reason}" if asked == "cuda" else None)


def check(
    device: Device, why: str, complaint: str | None, widths: Sequence[int], rule: str, world: Communicator
) -> Section:
    """Device and merger of a network of these widths."""
    section = Section("choices")
    section.tell("device", f"{device.kind}: {why}", device=device.kind, device_why=why)
    for rank, text in enumerate(world.gather_text(complaint or "")):
        if text:
            section.problems.append(f"rank {rank}: {text}")
    choice = open_merger("auto", _store(device, widths), world.on(device), RULES[rule])
    choice.merger.close()
    reason = str(choice).partition(" ")[2].strip("()") or "one rank has nothing to merge"
    section.tell(
        "merger", f"{choice.merger.name}: {reason}; for {' - '.join(map(str, widths))}, "
        f"{parameter_count(widths):,} weights",
        merge=choice.merger.name, merge_seconds=choice.seconds, widths=list(widths),
    )  # fmt: skip
    return section


def _store(device: Device, widths: Sequence[int]) -> ParameterStore:
    """Parameters like those of the network, fewer where it is so large that the trial would not take them all."""
    shrink = min(1.0, LARGEST / parameter_count(widths))
    sizes = [ceil(shrink * (fan_in + 1) * fan_out) for fan_in, fan_out in pairwise(widths)]
    return ParameterStore(device, [(f"layer {number}", (size,)) for number, size in enumerate(sizes)])
