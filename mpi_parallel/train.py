"""Train an image classifier on all ranks: `mpirun -n 4 python -m mpi_parallel.train --data FILE.h5`. START HERE."""

from __future__ import annotations

from functools import partial

from mpi_parallel.config import TrainConfig
from mpi_parallel.data_parallel.augmentation import augmentation_of
from mpi_parallel.data_parallel.dataset import ImageSet, open_image_set
from mpi_parallel.data_parallel.evaluation import evaluation_rows
from mpi_parallel.data_parallel.loader import TrainingRows, class_count
from mpi_parallel.data_parallel.memory import budget_of
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.device import Device
from mpi_parallel.device.clock import Clock
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.process_grid import ProcessGrid
from mpi_parallel.mpi.pulse import PULSE
from mpi_parallel.mpi.session import launch
from mpi_parallel.nn.optimizers import RULES, Optimizer
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import seconds_of
from mpi_parallel.result_merging.automatic import Choice, open_merger
from mpi_parallel.training.banner import announce, settle_threads
from mpi_parallel.training.board import open_board
from mpi_parallel.training.checkpoints.identity import identity_of
from mpi_parallel.training.checkpoints.resume import find, take_up
from mpi_parallel.training.checkpoints.saver import open_saver
from mpi_parallel.training.checkpoints.start import start
from mpi_parallel.training.devices import settle_device
from mpi_parallel.training.faults.legacy import Forgetful, Heritage
from mpi_parallel.training.faults.signals import StopRequest
from mpi_parallel.training.faults.survival import survive
from mpi_parallel.training.faults.watchdog import Watchdog
from mpi_parallel.training.fit import fit
from mpi_parallel.training.layout import open_engine, open_model, over_grid
from mpi_parallel.training.log import RunFolder
from mpi_parallel.training.planning import settle_layout
from mpi_parallel.training.run import Run
from mpi_parallel.training.step import Engine
from mpi_parallel.training.trace import open_trace

SENTENCE = "Train an image classifier on all ranks: mpirun -n 4 python -m mpi_parallel.train --data FILE.h5"


def main(world: Communicator, arguments: list[str]) -> int:
    """Train as the options say, watched over; the exit status."""
    config = parse(TrainConfig, arguments, "mpi_parallel.train", SENTENCE, speaks=world.rank == 0)
    with StopRequest() as stop:
        if config.run.survive:
            survive(world, partial(train, config=config, stop=stop), seconds_of(config.run.hang_timeout))
        return train(world, Forgetful(), config, stop)


def train(world: Communicator, legacy: Heritage, config: TrainConfig, stop: StopRequest) -> int:
    """Build the run from its options, then fit, under the eyes of a watchdog; the exit status."""
    config = legacy.claim(config)
    with Watchdog(world, seconds_of(config.run.hang_timeout), config.run.survive):
        return _train(world, legacy, config, stop)


def _train(world: Communicator, legacy: Heritage, config: TrainConfig, stop: StopRequest) -> int:
    node = world.node()
    threads = settle_threads(config.threads, node)
    device = settle_device(config.device.device, node, world, config.device.precision, config.groups is None)
    enter = partial(_enter, world, legacy, stop)
    enter("settling the layout")
    data = open_image_set(config.data, config.batch.seed, world)
    layout = settle_layout(config, data, world.on(device), node)
    grid, clock = ProcessGrid(world.on(device), *layout.grid[1:]), Clock()
    trace = open_trace(config.run.trace, config.run.trace_steps, clock, world, grid)
    enter("reading the data")
    training, validation, test = _read(config, data, grid, node, device, clock)

    enter("building the network")
    classes = class_count(data, training, [validation, test], grid.data.on_host())
    engine, optimizer, choice = _build(config, (data.features, *config.model.hidden, classes), training, grid, clock)
    if choice.seconds:
        config = config.merging_by(choice.merger.name)
    enter("opening the folder")
    folder = RunFolder(config.run.out, config, config.run.progress, world, config.run.resume is not None)
    folder.show_on(open_board(config.run.tensorboard, folder.path, world.rank == 0))
    merger = over_grid(choice.merger, grid)
    rows = training, validation, test
    run = Run(config, world, grid.speaks, engine, merger, optimizer, *rows, data, folder, trace, stop)
    legacy.watch(run)
    facts = identity_of(run, grid, threads)
    run.saver = open_saver(run, facts)
    found = find(run, facts)
    announce(run, grid, threads, choice, layout)
    if not legacy.hand_to(run):
        take_up(run, found) if found else start(run)
    status = fit(run)
    for held in (run.saver, merger):
        held.close()
    for lent in (training, grid, node):
        lent.free()
    return status


def _enter(world: Communicator, legacy: Heritage, stop: StopRequest, doing: str) -> None:
    """All ranks begin the next thing, or stop where one was asked to and nothing is lost by that."""
    PULSE.enter(doing)
    if legacy.empty:
        stop.before_training(world)


def _read(
    config: TrainConfig, data: ImageSet, grid: ProcessGrid, node: Communicator, device: Device, clock: Clock
) -> tuple[TrainingRows, Rows | None, Rows | None]:
    """This rank's training rows, and its part of the others."""
    clock.enter("data", "read data")
    batch, comm = config.batch, grid.data.on_host()  # of what is read and counted
    budget, augment = budget_of(config.data, node, device), augmentation_of(config.data, data.shape)
    peers = grid.model if grid.model.size > 1 else None
    images = grid.pipe.rank == 0  # the other stages look at labels alone
    training = TrainingRows(data, batch.shards, batch.seed, comm, device, budget, augment, peers, config.groups, images)
    training.rows.listen(clock.beside)
    left = budget.less(training.bytes)
    held_out = [evaluation_rows(s, training.scaler, comm, device, left, images) for s in (data.validation, data.test)]
    clock.enter("other")
    return training, held_out[0], held_out[1]


def _build(
    config: TrainConfig, widths: tuple[int, ...], training: TrainingRows, grid: ProcessGrid, clock: Clock
) -> tuple[Engine, Optimizer, Choice]:
    """The network's engine, its optimizer, and the merger that was chosen for it."""
    rule, batch, parallel, grouped = config.optimizer, config.batch, config.parallel, config.groups is not None
    device = training.rows.device
    model = open_model(device, widths, grid, config.model.dropout, batch.seed, config.device.precision, grouped)
    engine = open_engine(model, training.rows, batch.micro_batch, parallel.pipe_schedule, grouped, clock)
    update = partial(RULES[rule.optimizer], weight_decay=rule.weight_decay)
    choice = open_merger(config.merge, model.store, grid.data, update, config.groups, parallel.wire)
    return engine, update(model.store), choice


if __name__ == "__main__":
    launch(main, stoppable=True)
