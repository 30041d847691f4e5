"""The default job as one would write it in JAX for speed: data in memory, a whole epoch in one compiled `lax.scan`.

A program of its own, with nothing of ours: python peer_jax.py FILE.h5 EPOCHS BATCH HIDDEN... prints samples/s by epoch.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np


def main() -> None:
    path, epochs, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with h5py.File(path) as file:
        x = (file["train/images"][:].reshape(len(file["train/images"]), -1) - file.attrs["mean"]) / file.attrs["std"]
        x, t = jnp.asarray(x, jnp.float32), jnp.asarray(file["train/labels"][:], jnp.int32)
    widths = [x.shape[1], *map(int, sys.argv[4:]), 10]
    random = np.random.default_rng(0)
    weights = [
        (jnp.asarray(random.normal(size=(i, o)) * (2 / (i + o)) ** 0.5, jnp.float32), jnp.zeros(o))
        for i, o in pairwise(widths)
    ]
    zeros = jax.tree.map(jnp.zeros_like, weights)
    steps = len(x) // batch
    state = (weights, zeros, zeros, 0.0)
    for number in range(epochs):
        began = time.perf_counter()
        order = jax.random.permutation(jax.random.key(number), len(x))[: steps * batch].reshape(steps, batch)
        state, loss = epoch(state, order, x, t)
        loss.block_until_ready()
        seconds = time.perf_counter() - began
        print(json.dumps({"samples_per_second": steps * batch / seconds, "loss": float(loss)}), flush=True)


def loss_of(weights: Any, x: Any, t: Any) -> Any:
    for W, b in weights[:-1]:
        x = jax.nn.relu(x @ W + b)
    W, b = weights[-1]
    z = jax.nn.log_softmax(x @ W + b)
    return -jnp.take_along_axis(z, t[:, None], 1).mean()


@jax.jit  # type: ignore[untyped-decorator, unused-ignore]
def epoch(state: Any, order: Any, x: Any, t: Any) -> Any:
    """Adam over the rows of `order` (steps, batch)."""

    def step(state: Any, rows: Any) -> Any:
        w, m, v, k = state
        loss, g = jax.value_and_grad(loss_of)(w, x[rows], t[rows])
        k += 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        c, d = 1 - 0.9**k, 1 - 0.999**k
        w = jax.tree.map(lambda w, m, v: w - 1e-3 * (m / c) / (jnp.sqrt(v / d) + 1e-8), w, m, v)
        return (w, m, v, k), loss

    state, losses = jax.lax.scan(step, state, order)
    return state, losses.mean()


if __name__ == "__main__":
    main()
