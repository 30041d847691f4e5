"""Where each rank's time went."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpi_parallel.options import InputError
from mpi_parallel.pictures import style
from mpi_parallel.pictures.records import Record

MEANING = {"merge": "merge, and waiting in it"}
MOST_NAMES = 32  # ranks that are named


def accounts(run: Record) -> Any:
    """A bar a rank: its seconds by phase over all epochs. Raises InputError where the run has told none."""
    tables = [event["seconds_by_rank"] for event in run.epochs if event.get("seconds_by_rank")]
    if not tables:
        raise InputError(f"{run.name}: no epoch has told where its time went, rank by rank")
    phases = list(tables[0])
    ranks = max(len(table[phases[0]]) for table in tables)
    seconds = np.zeros((len(phases), ranks))
    for table in tables:  # of which those behind a restart may be of fewer ranks, or of more
        for row, phase in zip(seconds, phases, strict=True):
            row[: len(table[phase])] += table[phase]
    with style.figure(9, 1.6 + 0.32 * min(ranks, MOST_NAMES)) as picture:
        axes = picture.subplots()
        left = np.zeros(ranks)
        for phase, values in zip(phases, seconds, strict=True):
            colour, hatch = style.LOOKS[phase]
            axes.barh(
                np.arange(ranks), values, 0.75, left, label=MEANING.get(phase, phase), color=colour, hatch=hatch,
                edgecolor="black", linewidth=0.5,
            )  # fmt: skip
            _shares(axes, left, values, seconds.sum(axis=0), ranks, colour)
            left += values
        axes.set(xlabel="seconds in training", title=f"where the time of {ranks} rank{'s' * (ranks > 1)} went")
        if ranks <= MOST_NAMES:
            busy = seconds.sum(axis=0) - seconds[phases.index("merge")]
            names = [f"rank {rank}" + ", slowest" * bool(ranks > 1 and rank == busy.argmax()) for rank in range(ranks)]
            axes.set_yticks(np.arange(ranks), names)
        axes.invert_yaxis()
        picture.legend(loc="outside lower center", ncols=len(phases))
    return picture


def _shares(axes: Any, left: Any, values: Any, totals: Any, ranks: int, colour: str) -> None:
    """The share in per cent within each piece that has room for it."""
    if ranks > MOST_NAMES:
        return
    ink = "white" if colour == style.BLUE else "black"
    for rank in range(ranks):
        share = values[rank] / max(totals[rank], 1e-12)
        if share > 0.05:
            axes.text(
                left[rank] + values[rank] / 2, rank, f"{share:.0%}", ha="center", va="center", color=ink, fontsize=8,
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 1},
            )  # fmt: skip
