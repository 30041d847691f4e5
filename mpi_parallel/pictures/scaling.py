"""How much more is done with more ranks, beside the line of those who lose nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from mpi_parallel.options import InputError
from mpi_parallel.pictures import style
from mpi_parallel.pictures.records import Record

Points = dict[str, dict[int, float]]  # samples a second by ranks, of each series


def scaling(points: Points) -> Any:
    """Samples a second by the number of ranks, each series with its ideal line from its fewest ranks, and its
    efficiency. Raises InputError where no series has two numbers of ranks."""
    series = {name: dict(sorted(rates.items())) for name, rates in points.items() if len(rates) > 1}
    if not series:
        known = ", ".join(f"{name} ({', '.join(map(str, rates))})" for name, rates in points.items()) or "none"
        raise InputError(f"scaling needs the same on two numbers of ranks at least; there is {known}")
    with style.figure(9, 3.8) as picture:
        rates, shares = picture.subplots(1, 2)
        for number, (name, values) in enumerate(series.items()):
            look = {"color": style.LINES[number % len(style.LINES)], "marker": style.MARKERS[number % 7], "label": name}
            ranks, (fewest, first) = list(values), next(iter(values.items()))
            rates.plot(ranks, list(values.values()), **look)
            ideal = [first * n / fewest for n in ranks]
            rates.plot(ranks, ideal, ":", color=look["color"], label="ideal" if number == 0 else None)
            efficiency = [value / best for value, best in zip(values.values(), ideal, strict=True)]
            shares.plot(ranks, efficiency, **look)
            shares.annotate(
                f"{efficiency[-1]:.0%}", (ranks[-1], efficiency[-1]), textcoords="offset points", xytext=(-2, -13),
                ha="right", color=look["color"], bbox=style.PAPER,
            )  # fmt: skip
        shares.axhline(1, linestyle=":", color=style.BLACK)
        every = sorted({n for values in series.values() for n in values})
        for axes, title in ((rates, "samples a second"), (shares, "share of the ideal")):
            axes.set(xlabel="ranks", title=title, xticks=every, ylim=(0, None))
            axes.grid(alpha=0.3)
        rates.yaxis.set_major_formatter("{x:,.0f}")
        shares.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        handles, labels = rates.get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return picture


def points_of(runs: Sequence[Record], benchmarks: Sequence[dict[str, Any]]) -> Points:
    """Of runs the median epoch's rate; of `benchmark scaling` that of each layout, of `benchmark step` its own."""
    points: Points = defaultdict(dict)
    for run in runs:
        if run.epochs and "ranks" in run.start:
            points["runs"][run.start["ranks"]] = median(event["samples_per_second"] for event in run.epochs)
    for figures in benchmarks:
        for layout, row in figures.get("layouts", {}).items():
            points[layout.partition(",")[0]][figures["ranks"]] = row["samples_per_second"]
        if "step_seconds" in figures:
            points["benchmark step"][figures["ranks"]] = figures["samples_per_second"]
    return dict(points)
