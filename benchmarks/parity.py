"""The same steps on a GPU and on the CPU, in every precision: how far apart they end, against what is allowed.

    python benchmarks/parity.py --device cuda [--steps 20] [--ways float32 tf32 bfloat16 float16 at-once]

Prints a line of JSON for each way; the status is 1 where one is too far apart. Both sides start from the same weights
and take the same rows; on a GPU the steps are captured and replayed, which has to change nothing at all: that is
checked bit for bit against the same steps without graphs. `at-once` is float32, its rows taken through all layers by
kernels of their own (kernels/small.cu), which add in yet another order. Steps that went another way, such as one by one
because cublasLt is missing, prove nothing, and count as too far apart.

What is allowed of the loss's relative difference, in the first FEW steps and in all: a GPU adds in another order, which
the narrow formats turn into roundings to the other neighbour, and steps then carry it on. On the cores, weights that
were changed by 2e-7 of themselves moved the losses of 5 steps by at most 4e-7 (float32), 7e-5 (tf32, float16), 3e-4
(bfloat16) and of 20 steps by 2e-6, 4e-3, 7e-3; rounding itself moved them by 8e-3 (10 bits), 1.3e-2 (bfloat16).
The allowances are some times that; a GPU that cuts TF32 off in place of rounding it gets more.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import cycle
from typing import Any

import numpy as np
from mpi4py import MPI

from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.device import Device, open_device
from mpi_parallel.device.clock import Clock
from mpi_parallel.device.interface import Schedule
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.optimizers import Adam
from mpi_parallel.nn.precision import FORMATS
from mpi_parallel.result_merging.flat import Flat
from mpi_parallel.training.captured import CapturedSteps

FEW = 5
ALLOWED = {"float32": (1e-5, 1e-4), "tf32": (5e-3, 3e-2), "float16": (1e-3, 2e-2), "bfloat16": (2e-3, 3e-2)}
AT_ONCE = "at-once"
WAYS = (*FORMATS, AT_ONCE)
ROWS, FEATURES, CLASSES, BATCH = 2048, 784, 10, 256


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare steps on a device with those on the CPU.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    options = parser.parse_args()
    bad = False
    for way in options.ways:
        told = compare(options.device, way, options.steps)
        bad |= not told["agrees"]
        print(json.dumps(told), flush=True)
    return int(bad)


def compare(kind: str, way: str, steps: int) -> dict[str, Any]:
    """The largest relative difference of a step's loss, whether replayed steps are eager ones bit for bit, and whether
    steps were replayed, and went through all layers at once, as they were meant to."""
    at_once, precision = way == AT_ONCE, "float32" if way == AT_ONCE else way
    device = open_device(kind, 0, precision, measure=False)
    if at_once:
        device.measures, device.time = True, lambda _: [2.0, 1.0]
    losses, weights, taken = train(device, precision, steps, graphs=True)
    _, eager, _ = train(device, precision, steps, graphs=False)
    expected, _, _ = train(open_device("cpu", 0), precision, steps, graphs=False)
    apart = np.abs(losses - expected) / np.abs(expected)
    first, whole = float(apart[:FEW].max()), float(apart.max())
    same = bool(np.array_equal(weights, eager))
    close = first <= ALLOWED[precision][0] and whole <= ALLOWED[precision][1]  # NaN is not
    as_meant = taken.replays and taken.at_once == (at_once and device.kind != "cpu")
    told = {"precision": way, "apart_at_first": first, "apart": whole, "allowed": ALLOWED[precision]}
    told |= {"replay_is_eager": same, "replays": taken.replays, "at_once": taken.at_once}
    return {**told, "agrees": close and same and as_meant}


def train(device: Device, precision: str, steps: int, graphs: bool) -> tuple[Any, Any, CapturedSteps]:
    """The losses of the steps, the weights behind them, and who took them."""
    random = np.random.default_rng(1)
    labels = random.integers(0, CLASSES, ROWS).astype(np.int32)
    patterns = random.integers(0, 200, (CLASSES, FEATURES))
    images = np.clip(patterns[labels] + random.normal(0, 60, (ROWS, FEATURES)), 0, 255).astype(np.uint8)
    comm = Communicator(MPI.COMM_SELF, device)
    model = MLP(device, (FEATURES, 128, 64, CLASSES), dropout=0.1, precision=precision)
    engine = Replica(model, Rows(images, labels, Scaler.of(100.0, 70.0), device), Clock())
    schedule = Schedule(1e-3, False, 0, steps, clip=1.0)
    take = CapturedSteps(engine, Flat(model.store, comm), Adam(model.store), schedule, graphs)
    index = device.to_device(random.permutation(ROWS).astype(np.int64))
    keys = device.to_device(random.integers(2**32, size=ROWS, dtype=np.uint32))
    starts = cycle(range(0, ROWS, BATCH))
    losses = []
    with np.errstate(all="ignore"):
        for number in range(steps):
            start = next(starts)
            cut = slice(start, start + BATCH)
            losses.append(take(Batch(index[cut], keys[cut], None, (index, keys), start), number).loss)
    return np.array(losses), device.to_host(model.store.weights).copy(), take


if __name__ == "__main__":
    sys.exit(main())
