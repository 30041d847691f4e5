"""A training step of the same network in PyTorch on one GPU, in the ways in which one would write it for speed.

A program of its own, with nothing of ours: python peer_torch_step.py '{"shapes": [{"features": 784, ...}], ...}'
prints seconds a step as JSON, a line for each shape and each of `eager`, `compile` (torch.compile), `graph` (the whole
step in a CUDA graph) and `compile-graph` (both), all with fused Adam. Images are uint8 in the GPU's memory; a step
gathers and standardises its rows, as ours does.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise, product
from statistics import median
from typing import Any

import torch
from torch import nn

ROWS = 8192


def main() -> None:
    options = json.loads(sys.argv[1])
    device = torch.device(options["device"])
    for shape, way in product(options["shapes"], options["ways"]):
        told: dict[str, Any] = {"shape": shape["name"], "way": way, "torch": torch.__version__}
        try:
            told["step_seconds"] = measure(steps_of(way, shape, device), options["seconds"], device)
        except Exception as error:  # one way that fails is told, and the next one tried
            told["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(told), flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def steps_of(way: str, options: Any, device: torch.device) -> Callable[[], None]:
    """A function that takes one step, all of which are alike in shape."""
    torch.compiler.reset()  # else what is compiled for another shape takes both for examples of any: slower kernels
    torch.backends.cuda.matmul.allow_tf32 = options["precision"] == "tf32"
    torch.manual_seed(0)
    widths, batch = [options["features"], *options["hidden"], options["classes"]], options["batch_size"]
    images = torch.randint(0, 256, (ROWS, widths[0]), dtype=torch.uint8, device=device)
    labels = torch.randint(0, widths[-1], (ROWS,), device=device)
    order = torch.randint(0, ROWS, (32, batch), device=device)
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).to(device)
    on_gpu, captured = device.type == "cuda", way.endswith("graph")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=on_gpu, capturable=captured and on_gpu)
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(options["precision"])

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        x, t = (images[rows].float() - 72.9) * (1 / 90.0), labels[rows]
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            return nn.functional.cross_entropy(model(x), t)

    forward = torch.compile(loss_of, dynamic=False) if way.startswith("compile") else loss_of

    def step(rows: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)  # gradients are then written, also in a graph, and not cleared and added
        forward(rows).backward()
        optimizer.step()

    numbers = iter(range(10**12))
    if not captured:
        return lambda: step(order[next(numbers) % len(order)])
    return graph_of(step, order)


def graph_of(step: Callable[[torch.Tensor], None], order: torch.Tensor) -> Callable[[], None]:
    """The whole step captured, as PyTorch's documentation tells: warm up on a stream of its own, then capture."""
    rows = order[0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(rows)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(rows)
    numbers = iter(range(10**12))

    def replay() -> None:
        rows.copy_(order[next(numbers) % len(order)])
        graph.replay()

    return replay


def measure(step: Callable[[], None], seconds: float, device: torch.device) -> float:
    """Seconds of a step, the median of seven rounds after a warm-up."""

    def round_of(count: int) -> float:
        settle(device)
        began = time.perf_counter()
        for _ in range(count):
            step()
        settle(device)
        return (time.perf_counter() - began) / count

    round_of(10)
    count = max(1, int(seconds / 7 / round_of(10)))
    return median(round_of(count) for _ in range(7))


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
