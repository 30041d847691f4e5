"""The loop over epochs: train, evaluate, tell, and stop when there is a reason to."""

from __future__ import annotations

import logging
import math
from itertools import islice
from typing import Any

import numpy as np

from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.memory import resident
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.device.clock import PHASES, process_seconds
from mpi_parallel.mpi.pulse import PULSE
from mpi_parallel.nn.layers import See
from mpi_parallel.nn.learning_rate import learning_rate
from mpi_parallel.nn.mlp import weights_sha256
from mpi_parallel.result_merging.metrics import Score, Totals, merge_scores, score
from mpi_parallel.signals import STOPPED
from mpi_parallel.training import closing
from mpi_parallel.training.ahead import Steps, in_order
from mpi_parallel.training.faults.bad_numbers import LISTED, diagnose
from mpi_parallel.training.faults.replicas import compares_replicas, replicas_differ
from mpi_parallel.training.faults.time_limit import time_limit_of
from mpi_parallel.training.log import logger
from mpi_parallel.training.pacing import open_steps
from mpi_parallel.training.progress import duration, open_progress
from mpi_parallel.training.run import Run

FINISHED, DIFFERENT, UNSAVED, DIVERGED = 0, 1, 1, 3  # exit statuses, beside STOPPED
STATUSES = {"not-finite": DIVERGED, "signal": STOPPED, "time-limit": STOPPED, "replicas-differ": DIFFERENT}
TOLD_APART = 256  # of more ranks an epoch's line tells the mean and the slowest alone


def fit(run: Run) -> int:
    """Train until there is a reason to stop; the exit status."""
    run.stop.begin(time_limit_of(run.config.run.time_limit) if run.comm.rank == 0 else None)
    progress = open_progress(run.config.run.progress, run.total_steps, run.comm.rank == 0, run.config.batch.batch_size)
    run.folder.show_through(progress)
    reason, run.patience.epochs = "finished", run.config.run.early_stop
    steps = open_steps(run.engine, run.merger, run.optimizer, run.config, run.total_steps, run.step)
    try:
        with np.errstate(all="ignore"):  # what overflows is found by the step's own check
            run.legacy.keep(run)
            if run.step and run.step == (run.epochs + 1) * run.steps_per_epoch:  # it ended just before its evaluation
                run.before = run.sums[2]
                reason = _end_epoch(run)
            while run.step < run.total_steps and reason == "finished":
                reason = _train_epoch(run, steps, progress)
                if reason == "finished":
                    reason = _end_epoch(run)
            return _end(run, reason)
    finally:
        for rows in (run.training.rows, run.validation, run.test):
            if rows is not None:
                rows.close()
        progress.close()
        run.folder.close()
        steps.close()  # last, as a GPU that is lost says so once more


def _train_epoch(run: Run, steps: Steps, progress: Any) -> str:
    """Take the steps of one epoch; why they ended."""
    batch, clock, saver = run.config.batch, run.engine.clock, run.saver
    clock.reset()
    first = run.step - run.epochs * run.steps_per_epoch  # not 0 where a run goes on in mid-epoch
    run.sums = run.sums if first else [0.0, 0.0, 0.0]
    run.before = run.sums[2]
    clock.step = run.step + 1
    PULSE.enter(f"epoch {run.epochs + 1}")
    parts = clock.booked("data", run.training.epoch(run.epochs, batch.batch_size, first), "order")

    def before(number: int) -> tuple[bool, bool]:
        clock.step = number + 1
        PULSE.take(number + 1)
        return run.stop.before_step(saver.took, steps.ahead), saver.due()

    def rests(taken: int) -> bool:
        return saver.wants(taken) or compares_replicas(run, taken)

    left = islice(parts, run.total_steps - run.step)
    for part, totals in in_order(steps, left, run.step, before, rests):
        bad = not (totals.finite or totals.skipped)
        if bad and _too_bad(run, part, totals):
            return "not-finite"
        run.step += 1
        clock.step = run.step + 1
        run.first_step = run.first_step or process_seconds()
        run.samples += totals.count
        if not bad:
            run.sums = [run.sums[0] + totals.loss, run.sums[1] + totals.correct, run.sums[2] + totals.count]
        run.legacy.keep(run)
        progress.step(run.step, run.sums[0] / max(1.0, run.sums[2]))
        if replicas_differ(run):
            return "replicas-differ"
        saver.after_step(run, totals.save)
        if totals.stop:
            return run.stop.reason
    return "finished"


def _too_bad(run: Run, batch: Batch, totals: Totals) -> bool:
    """Tell where a step that was not finite went bad, and count it; whether the run is to end for it."""
    run.bad_steps += 1
    places, allowed = diagnose(run, batch), run.config.run.max_bad_steps
    run.folder.event("bad-step", step=run.step + 1, bad_steps=run.bad_steps, loss=totals.loss, places=places)
    ends = run.bad_steps > allowed
    run.folder.tell(
        logging.WARNING,
        "step %d of epoch %d: loss %s or the gradient is not finite: %s (%d such steps, --max-bad-steps %d)%s",
        run.step + 1, run.epochs + 1, totals.loss, "training went bad" if ends else "skipped", run.bad_steps, allowed,
        "".join(f"\n  {place}" for place in places[:LISTED]),
    )  # fmt: skip
    return ends


def _end_epoch(run: Run) -> str:
    """Evaluate and tell of the epoch; why the run should end now, or "finished" when it should not."""
    run.epochs += 1
    seconds = run.engine.clock.total()
    phases, by_rank, slowest = _accounts(run)  # now, as evaluation takes time, too
    trained = score(*run.sums)
    held_out = evaluate(run, run.validation)
    rule, scale = run.config.optimizer, run.engine.store.loss_scale
    rate = learning_rate(run.step - 1, base=rule.lr, schedule=rule.schedule, warmup=rule.warmup, total=run.total_steps)
    run.folder.event(
        "epoch", epoch=run.epochs, step=run.step, samples=run.samples, seconds=seconds,
        samples_per_second=(trained.count - run.before) / seconds, train_loss=trained.loss,
        train_accuracy=trained.accuracy,
        validation_loss=held_out.loss if held_out else None, validation_accuracy=held_out.accuracy if held_out else
        None,
        lr=rate, seconds_by_phase=phases, seconds_by_rank=by_rank, slowest_rank=slowest,
        seconds_to_first_step=run.first_step, loss_scale=scale.value, skipped_steps=scale.skipped,
    )  # fmt: skip
    logger.info(_epoch_line(run, trained, held_out, seconds))
    judged, target = held_out or trained, run.config.run.target_accuracy
    lost = run.patience.lost(judged.loss)
    if held_out and not run.patience.since:
        run.saver.improved(run)
    if target is not None and judged.accuracy >= target:
        return "target"
    return "early-stop" if lost else "finished"


def evaluate(run: Run, rows: Rows | None, see: See | None = None) -> Score | None:
    """The exact score of all ranks' rows of a split; None where there is no such split. `see` may look on."""
    if rows is None:
        return None
    run.engine.clock.enter("other", "evaluate")
    PULSE.enter("evaluation")
    mine = run.engine.score(rows, see)  # the same on all ranks of a model, or known to some of them only
    result = merge_scores(run.comm, *(mine if run.speaks else (0.0, 0, 0)))
    run.engine.clock.enter("other")
    return result


def _accounts(run: Run) -> tuple[dict[str, float], dict[str, list[float]] | None, int]:
    """Seconds by phase, the ranks' mean and each rank's (where they are few), and who worked longest beside merging."""
    mine = np.array([run.engine.clock.seconds[phase] for phase in PHASES])
    all_ranks = run.comm.gather(mine)
    busy = all_ranks.sum(axis=1) - all_ranks[:, PHASES.index("merge")]
    mean = dict(zip(PHASES, all_ranks.mean(axis=0).tolist(), strict=True))
    by_rank = dict(zip(PHASES, all_ranks.T.round(6).tolist(), strict=True)) if len(busy) <= TOLD_APART else None
    return mean, by_rank, int(busy.argmax())


def _epoch_line(run: Run, trained: Score, held_out: Score | None, seconds: float) -> str:
    left = (run.total_steps - run.step) * seconds / (trained.count / run.config.batch.batch_size)
    validation = f"  validation {held_out.loss:.4f} {held_out.accuracy:.4f}" if held_out else ""
    planned = -(-run.total_steps // run.steps_per_epoch)
    return (
        f"epoch {run.epochs:>{len(str(planned))}}/{planned}  loss {trained.loss:.4f}  accuracy {trained.accuracy:.4f}"
        f"{validation}  {trained.count / seconds:,.0f} samples/s  {duration(left)} left"
    )


def _end(run: Run, reason: str) -> int:
    """Tell how the run ended; the exit status. A run that is asked to stop does not begin to evaluate."""
    observer = closing.open_observer(run)
    see = observer.see if observer else None
    tested = evaluate(run, run.test, see) if reason in closing.WELL else None
    if tested and not math.isfinite(tested.loss):  # the last step went bad, which no further one could find out
        run.folder.tell(logging.WARNING, "test loss %s: training went bad", tested.loss)
        reason = "not-finite"
    PULSE.enter("the end of the run")
    bad = reason in ("not-finite", "replicas-differ")
    saved = bad or run.saver.last(run)
    if bad:
        run.saver.settle()
    seconds, digest = process_seconds(), weights_sha256(run.engine.model.pieces())
    run.folder.event(
        "end", step=run.step, epochs=run.epochs, reason=reason, seconds=seconds,
        test_loss=tested.loss if tested else None, test_accuracy=tested.accuracy if tested else None,
        weights_sha256=digest, memory=run.comm.gather(np.array([resident()]))[:, 0].tolist(),
    )  # fmt: skip
    result = f"  test loss {tested.loss:.4f}  test accuracy {tested.accuracy:.4f}" if tested else ""
    logger.info(f"{reason} after {run.step} steps, {duration(seconds)}{result}")
    closing.leave(run, reason, observer)
    if not saved:
        run.folder.tell(logging.ERROR, "where the run ended could not be saved")
        return UNSAVED
    return STATUSES.get(reason, FINISHED)
