"""A training step of the same network in JAX on one device: many steps in one compiled `lax.scan`.

A program of its own, with nothing of ours: python peer_jax_step.py '{"shapes": [{"features": 784, ...}], ...}'
prints seconds a step as JSON, a line for each shape. Images are uint8 in the device's memory; a step gathers and
standardises its rows, as ours does.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROWS, STEPS, FEW = 8192, 64, 8  # steps of a scan, few where one takes milliseconds
LARGE = 1e9  # products of a row's numbers and weights, in a step


def main() -> None:
    options = json.loads(sys.argv[1])
    for shape in options["shapes"]:
        told = {"shape": shape["name"], "way": "scan", "jax": jax.__version__, "on": jax.default_backend()}
        try:
            if options["device"] == "cuda" and jax.default_backend() != "gpu":
                raise RuntimeError("this JAX finds no GPU")
            told["step_seconds"] = measure(shape, options["seconds"])
        except Exception as error:  # one that fails is told, and the next one tried
            told["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(told), flush=True)


def measure(options: Any, seconds: float) -> float:
    """Seconds of a step, the median of some scans after a warm-up."""
    how = {"float32": "highest", "tf32": "tensorfloat32"}.get(options["precision"], "default")
    jax.config.update("jax_default_matmul_precision", how)  # type: ignore[no-untyped-call, unused-ignore]
    half = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}.get(options["precision"], jnp.float32)
    widths, batch = [options["features"], *options["hidden"], options["classes"]], options["batch_size"]
    count = STEPS if batch * sum(i * o for i, o in pairwise(widths)) < LARGE else FEW
    random = np.random.default_rng(0)
    images = jnp.asarray(random.integers(0, 256, (ROWS, widths[0]), np.uint8))
    labels = jnp.asarray(random.integers(0, widths[-1], ROWS), jnp.int32)
    order = jnp.asarray(random.integers(0, ROWS, (count, batch)), jnp.int32)
    weights = [
        (jnp.asarray(random.normal(size=(i, o)) * (2 / (i + o)) ** 0.5, jnp.float32), jnp.zeros(o))
        for i, o in pairwise(widths)
    ]
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = (weights, zeros, zeros, 0.0)

    def loss_of(weights: Any, rows: Any) -> Any:
        x, t = (images[rows].astype(jnp.float32) - 72.9) * (1 / 90.0), labels[rows]
        for number, (W, b) in enumerate(weights):
            x = x.astype(half) @ W.astype(half) + b.astype(half)  # halves backward, too
            x = jax.nn.relu(x) if number < len(weights) - 1 else x.astype(jnp.float32)
        return -jnp.take_along_axis(jax.nn.log_softmax(x), t[:, None], 1).mean()

    def step(state: Any, rows: Any) -> Any:
        w, m, v, k = state
        loss, g = jax.value_and_grad(loss_of)(w, rows)
        k += 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        c, d = 1 - 0.9**k, 1 - 0.999**k
        w = jax.tree.map(lambda w, m, v: w - 1e-3 * (m / c) / (jnp.sqrt(v / d) + 1e-8), w, m, v)
        return (w, m, v, k), loss

    scan = jax.jit(lambda state: jax.lax.scan(step, state, order))
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        state, losses = scan(state)
        losses.block_until_ready()
        times.append((time.perf_counter() - began) / count)
    return median(times[1:])


if __name__ == "__main__":
    main()
