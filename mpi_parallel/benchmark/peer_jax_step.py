"""A training step of the same network in JAX on one device: many steps in one compiled `lax.scan`.

A program of its own, with nothing of ours: python peer_jax_step.py '{"features": 784, "hidden": [128, 64], ...}'
prints seconds a step as JSON. Images are uint8 in the device's memory; a step gathers and standardises its rows, as
ours does.
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

ROWS, STEPS = 8192, 64


def main() -> None:
    options = json.loads(sys.argv[1])
    if options["precision"] in ("float32", "tf32"):
        how = {"float32": "highest", "tf32": "tensorfloat32"}[options["precision"]]
        jax.config.update("jax_default_matmul_precision", how)  # type: ignore[no-untyped-call, unused-ignore]
    half = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}.get(options["precision"], jnp.float32)
    widths, batch = [options["features"], *options["hidden"], options["classes"]], options["batch_size"]
    random = np.random.default_rng(0)
    images = jnp.asarray(random.integers(0, 256, (ROWS, widths[0]), np.uint8))
    labels = jnp.asarray(random.integers(0, widths[-1], ROWS), jnp.int32)
    order = jnp.asarray(random.integers(0, ROWS, (STEPS, batch)))
    weights = [
        (jnp.asarray(random.normal(size=(i, o)) * (2 / (i + o)) ** 0.5, jnp.float32), jnp.zeros(o))
        for i, o in pairwise(widths)
    ]
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = (weights, zeros, zeros, 0.0)

    def loss_of(weights: Any, rows: Any) -> Any:
        x, t = (images[rows].astype(jnp.float32) - 72.9) * (1 / 90.0), labels[rows]
        for number, (W, b) in enumerate(weights):
            x = jnp.matmul(x.astype(half), W.astype(half), preferred_element_type=jnp.float32) + b
            x = jax.nn.relu(x) if number < len(weights) - 1 else x
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
    ends = time.perf_counter() + options["seconds"]
    while len(times) < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        state, losses = scan(state)
        losses.block_until_ready()
        times.append((time.perf_counter() - began) / STEPS)
    told = {"way": "scan", "step_seconds": median(times[1:]), "jax": jax.__version__, "on": jax.default_backend()}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
