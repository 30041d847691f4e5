"""The default job in PyTorch with DistributedDataParallel over gloo: data in memory, no DataLoader in the way.

A program of its own, with nothing of ours: python peer_torch.py FILE.h5 EPOCHS BATCH HIDDEN... starts two processes, a
thread each, and prints samples/s by epoch. BATCH is that of both together.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise

import h5py
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn

PROCESSES = 2


def main() -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ.get("MASTER_PORT", "29517"))
    torch.multiprocessing.spawn(train, (sys.argv[1:],), nprocs=PROCESSES)


def train(rank: int, arguments: list[str]) -> None:
    path, epochs, batch = arguments[0], int(arguments[1]), int(arguments[2]) // PROCESSES
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    with h5py.File(path) as file:
        x = (file["train/images"][:].reshape(len(file["train/images"]), -1) - file.attrs["mean"]) / file.attrs["std"]
        x, t = torch.tensor(x, dtype=torch.float32), torch.tensor(file["train/labels"][:], dtype=torch.int64)
    widths = [x.shape[1], *map(int, arguments[3:]), 10]
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers[:-1]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    steps = len(x) // (batch * PROCESSES)
    for number in range(epochs):
        torch.distributed.barrier()
        began = time.perf_counter()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(number))
        mine = order[rank::PROCESSES][: steps * batch].reshape(steps, batch)
        loss = torch.zeros(())
        for rows in mine:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), t[rows])
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - began
        if rank == 0:
            rate = steps * batch * PROCESSES / seconds
            print(json.dumps({"samples_per_second": rate, "loss": loss.item()}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
