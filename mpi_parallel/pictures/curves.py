"""Learning curves of one run or of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpi_parallel.options import InputError
from mpi_parallel.pictures import style
from mpi_parallel.pictures.records import Record

MEASURES = {"loss": "loss", "accuracy": "accuracy"}


def curves(runs: Sequence[Record]) -> Any:
    """Loss and accuracy by epoch: dashed on the training rows, whole on the validation rows.

    A run has one colour and one marker; a cross behind the last epoch is its result on the test rows. Raises InputError
    where no run has ended an epoch.
    """
    told = [run for run in runs if run.epochs]
    if not told:
        raise InputError(f"{', '.join(run.name for run in runs)}: no epoch has ended yet, so there are no curves")
    with style.figure(9, 3.6) as picture:
        for axes, measure in zip(picture.subplots(1, 2), MEASURES, strict=True):
            for number, run in enumerate(told):
                _curve(axes, run, measure, number, len(told) > 1)
            axes.set(xlabel="epoch", title=measure)
            axes.grid(alpha=0.3)
            axes.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = axes.get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return picture


def _curve(axes: Any, run: Record, measure: str, number: int, named: bool) -> None:
    epochs = [event["epoch"] for event in run.epochs]
    few = max(1, len(epochs) // 12)
    for split, line in (("train", "--"), ("validation", "-")):
        values = [event.get(f"{split}_{measure}") for event in run.epochs]
        if all(value is None for value in values):
            continue
        # One run has a colour for each split, several have a colour each.
        look = number if named else int(split == "validation")
        label = f"{run.name}: {split}" if named else split
        axes.plot(
            epochs, values, line, color=style.LINES[look % len(style.LINES)], label=label, linewidth=1.5,
            marker=style.MARKERS[look % len(style.MARKERS)], markevery=few, markersize=4,
        )  # fmt: skip
    tested = run.end.get(f"test_{measure}")
    if tested is not None:
        colour = style.LINES[number % len(style.LINES)] if named else style.BLACK
        label = f"{run.name}: test" if named else "test"
        axes.plot([epochs[-1]], [tested], "x", color=colour, markersize=8, markeredgewidth=2, label=label)
        shift = (-6, -12) if measure == "accuracy" else (-6, 6)
        axes.annotate(
            f"{tested:.3f}",
            (epochs[-1], tested),
            textcoords="offset points",
            xytext=shift,
            ha="right",
            color=colour,
            bbox=style.PAPER,
        )
