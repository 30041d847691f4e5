"""Training on arrays, without files or a terminal: what `Classifier.fit` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.config import TrainConfig
from mpi_parallel.data_parallel.arrays import image_set
from mpi_parallel.data_parallel.loader import TrainingRows
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.device.clock import Clock
from mpi_parallel.exchange.trained import Trained
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.options import InputError
from mpi_parallel.result_merging.automatic import open_merger
from mpi_parallel.result_merging.metrics import Score, score
from mpi_parallel.training.ahead import Steps, in_order
from mpi_parallel.training.banner import settle_threads
from mpi_parallel.training.devices import settle_device
from mpi_parallel.training.pacing import open_steps


def learn(
    images_NF: NDArray[Any], labels_N: NDArray[np.int32], classes: int, config: TrainConfig, comm: Communicator
) -> tuple[Trained, list[Score]]:
    """Train on rows that all ranks give alike, each takes its share; the network and a score an epoch, on all ranks.

    Raises InputError where training goes bad.
    """
    batch, rule = config.batch, config.optimizer
    with ExitStack() as lent:
        node = comm.node()
        lent.callback(node.free)
        settle_threads(config.threads, node)
        device = settle_device(config.device.device, node, comm, config.device.precision, config.groups is None)
        comm = comm.on(device)
        data = image_set(images_NF, labels_N, classes)
        training = TrainingRows(data, batch.shards, batch.seed, comm, device, groups=config.groups)
        lent.callback(training.free)
        widths = (data.features, *config.model.hidden, classes)
        model = MLP(device, widths, config.model.dropout, batch.seed, config.device.precision)
        engine = Replica(model, training.rows, Clock(), batch.micro_batch)
        update = partial(RULES[rule.optimizer], weight_decay=rule.weight_decay)
        merger = open_merger(config.parallel.merge, model.store, comm, update, config.groups).merger
        lent.callback(merger.close)
        total = batch.epochs * training.steps(batch.batch_size)
        steps = open_steps(engine, merger, update(model.store), config, total)
        lent.callback(steps.close)
        history = list(_epochs(training, steps, config))
        weights = [array.copy() for array in model.weights()]
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    return Trained(layers, training.scaler.mean, training.scaler.std), history


def _epochs(training: TrainingRows, steps: Steps, config: TrainConfig) -> Iterator[Score]:
    """Train; the score of each epoch."""
    step = 0
    with np.errstate(all="ignore"):  # what overflows is found by the step's own check
        for epoch in range(config.batch.epochs):
            sums = np.zeros(3)
            batches = training.epoch(epoch, config.batch.batch_size)
            for _, totals in in_order(steps, batches, step):
                if not (totals.finite or totals.skipped):
                    raise InputError(
                        f"training went bad in step {step + 1}: loss {totals.loss}; lower lr, {config.optimizer.lr}"
                    )
                sums += totals.loss, totals.correct, totals.count
                step += 1
            yield score(*sums.tolist())
