"""The device of each rank, of one kind on all of them."""

from __future__ import annotations

import platform

from mpi_parallel.device import Device, open_device
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError

SHOWN = 4  # ranks of a kind that are named


def settle_device(
    kind: str, node: Communicator, world: Communicator, precision: str = "float32", measure: bool = True
) -> Device:
    """What `--device` asks for, on this rank; `node` are the ranks of `world` that share memory with it.

    All ranks together. Raises InputError, with the reason, where cuda is asked for and not there, and on all ranks
    where `auto` finds a GPU for some of them only: gradients of cores and of GPUs do not merge, and the job would run
    at the pace of the slowest.
    """
    device = open_device(kind, node.rank, precision, measure)
    told = world.gather_text(f"{device.kind}|{platform.node()}|{device.lacks}")
    split = [text.split("|", 2) for text in told]
    if len({found for found, _, _ in split}) == 1:
        return device
    with_gpu = [rank for rank, (found, _, _) in enumerate(split) if found == "cuda"]
    without = [
        f"rank {rank} on {host}{f' ({lacks})' if lacks else ''}"
        for rank, (found, host, lacks) in enumerate(split)
        if found == "cpu"
    ]
    more = f" and {len(without) - SHOWN} more" if len(without) > SHOWN else ""
    raise InputError(
        f"--device auto finds a GPU for {len(with_gpu)} of {len(told)} ranks, such as rank {with_gpu[0]} on "
        f"{split[with_gpu[0]][1]}, and none for {', '.join(without[:SHOWN])}{more}: have the same on every node, leave "
        "those out, or take --device cpu"
    )
