"""Whether all copies of the weights are still the same: by their digests, every so many steps (`--check-replicas`).

Ranks along the data axis take the same steps and must have the same bits. A bit that flips in memory, or a processor
that computes wrongly, makes one of them drift, which no collective notices. What is compared are the weights, and the
optimizer's state where every rank keeps all of it. The window merger keeps one copy of the weights a node: its ranks
read the same memory and cannot differ, so there only nodes are compared. And by window and sharded every weight has one
owner whose word all others take after each step: a bit that flips there is passed on, and copies stay the same.
"""

from __future__ import annotations

import hashlib
import logging
import platform
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.optimizers import Optimizer
from mpi_parallel.nn.store import ParameterStore

if TYPE_CHECKING:
    from mpi_parallel.training.run import Run

DIGEST = 16  # bytes


def compares_replicas(run: Run, taken: int) -> bool:
    """Whether the copies of the weights are to be compared when so many steps are taken."""
    every = run.config.run.check_replicas
    return bool(every) and taken % every == 0


def replicas_differ(run: Run) -> bool:
    """Whether it is time to compare the copies of the weights, and they are not the same."""
    if not compares_replicas(run, run.step):
        return False
    mine = differing(run.engine.store, run.optimizer, run.merger.owned, run.training.comm, run.comm.rank)
    told = list(dict.fromkeys(text for text in run.comm.gather_text(mine) if text))
    for text in told:
        run.folder.tell(
            logging.ERROR, "step %d: the copies of the weights are not the same any more: %s", run.step, text
        )
    return bool(told)


def differing(store: ParameterStore, optimizer: Optimizer, owned: slice, data: Communicator, rank: int) -> str:
    """Which ranks have other weights than most of `data`, the ranks that have copies; nothing when all agree.

    `rank` is what this rank is to be called.
    """
    mine = np.frombuffer(_digest(store, optimizer, owned), np.uint8)
    digests = [row.tobytes().hex()[:8] for row in data.gather(mine)]
    if len(set(digests)) == 1:
        return ""
    (common, votes), *_ = Counter(digests).most_common()
    names = data.gather_text(f"rank {rank} on {platform.node()}")
    if 2 * votes > len(digests):
        others = [name for name, digest in zip(names, digests, strict=True) if digest != common]
        return f"{' and '.join(others)} differ{'s' if len(others) == 1 else ''} from {votes} others, which agree"
    claims = [f"{name} has {digest}" for name, digest in zip(names, digests, strict=True)]
    return f"{', '.join(claims)}; there is no majority to tell who is right"


def _digest(store: ParameterStore, optimizer: Optimizer, owned: slice) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST)
    whole = owned == slice(0, store.size)
    for array in (store.weights, *(optimizer.state.values() if whole else ())):
        digest.update(np.ascontiguousarray(store.device.to_host(array)).data)
    return digest.digest()
