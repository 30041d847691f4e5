"""Steps as a trace has them: the pipeline diagram, and who did what when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median_low
from typing import Any

from mpi_parallel.options import InputError
from mpi_parallel.pictures import style
from mpi_parallel.pictures.records import Record, Span

MAIN = "main"
MOST_ROWS = 64
# What the legend says; of those that look alike the same.
WORDS = {
    "order": "data", "gather": "data", "read": "reading ahead", "sum": "a bucket's sum", "receive": "waiting",
    "wait": "waiting", "collect": "merge", "publish": "merge", "wait for the reader": "waiting for rows",
}  # fmt: skip


def pipeline(run: Record, step: int | None = None) -> Any:
    """The familiar diagram of a step: a row a stage, a box a micro-batch with its number, forward and backward.

    It shows the stages of the first model. Raises InputError where the run has no trace of a pipeline.
    """
    grid = run.start.get("grid", {})
    stages = grid.get("pipe", 1)
    if stages < 2:
        raise InputError(f"{run.name} is no pipeline (--pipe): there is no diagram of it")
    rows = {stage * grid.get("tensor", 1): f"stage {stage}" for stage in range(stages)}
    step, spans = _a_step(run, step)
    boxes = [span for span in spans if span.lane == MAIN and span.rank in rows]
    with style.figure(10, 1.5 + 0.55 * stages) as picture:
        axes = picture.subplots()
        names = [(rank, MAIN) for rank in rows]
        _draw(axes, boxes, names, list(rows.values()))
        for span in boxes:
            if span.name in ("forward", "backward") and span.micro is not None:
                ink = "white" if span.name == "forward" else "black"
                middle, row = (span.begun + span.ended) / 2, list(rows).index(span.rank)
                _number(axes, 1e3 * (middle - _zero(spans)), row, span, spans, ink)
        schedule = run.start.get("config", {}).get("parallel", {}).get("pipe_schedule", "")
        axes.set_title(f"step {step}: {schedule}, {_count(boxes)} micro-batches on {stages} stages")
        picture.legend(handles=_legend(boxes), loc="outside lower center", ncols=8)
    return picture


def timeline(run: Record, step: int | None = None) -> Any:
    """What every rank did in a step, and what travelled or was read beside it. Raises InputError without a trace."""
    step, spans = _a_step(run, step)
    rows = sorted({(span.rank, span.lane) for span in spans}, key=lambda row: (row[0], row[1] != MAIN, row[1]))
    with style.figure(10, 1.5 + 0.4 * min(len(rows), MOST_ROWS)) as picture:
        axes = picture.subplots()
        labels = [f"rank {rank}" if lane == MAIN else lane for rank, lane in rows]
        _draw(axes, spans, rows[:MOST_ROWS], labels[:MOST_ROWS])
        merged = run.start.get("merge")
        axes.set_title(f"step {step}" + (f", merged by {merged}" if merged else ""))
        picture.legend(handles=_legend(spans), loc="outside lower center", ncols=8)
    return picture


def _a_step(run: Record, step: int | None) -> tuple[int, list[Span]]:
    """A step and its spans: the one that was asked for, or one that took as long as most did."""
    spans = [span for span in run.spans if span.step]
    wholes = [span for span in spans if span.name == f"step {span.step}" and span.rank == 0]
    if not wholes:
        raise InputError(f"{run.name} has no trace: train with --trace")
    known = {span.step for span in wholes}
    if step is None:
        usual = median_low([(span.ended - span.begun, span.step) for span in wholes])
        step = usual[1]
    if step not in known:
        raise InputError(f"{run.name}: step {step} is not in the trace, which has {min(known)} to {max(known)}")
    return step, [span for span in spans if span.step == step and span.name not in (f"step {step}", "evaluate")]


def _draw(axes: Any, spans: Sequence[Span], rows: Sequence[tuple[int, str]], labels: Sequence[str]) -> None:
    """A bar a span, in milliseconds from the first."""
    zero = _zero(spans)
    numbers = {row: number for number, row in enumerate(rows)}
    for name in dict.fromkeys(_kind(span) for span in spans):
        colour, hatch = style.LOOKS.get(name, style.LOOKS["other"])
        of = [span for span in spans if _kind(span) == name and (span.rank, span.lane) in numbers]
        axes.barh(
            [numbers[span.rank, span.lane] for span in of], [1e3 * (span.ended - span.begun) for span in of], 0.8,
            [1e3 * (span.begun - zero) for span in of], color=colour, hatch=hatch, edgecolor="black", linewidth=0.4,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), labels)
    axes.set(xlabel="milliseconds", ylim=(len(rows) - 0.4, -0.6))
    axes.margins(x=0.01)


def _number(axes: Any, at: float, row: int, span: Span, spans: Sequence[Span], ink: str) -> None:
    """The micro-batch's number, where the box has room for it."""
    whole = max(other.ended for other in spans) - _zero(spans)
    if span.micro is None or (span.ended - span.begun) < 0.008 * whole * len(str(span.micro)):
        return
    colour = style.LOOKS[span.name][0]
    box = {"facecolor": colour, "edgecolor": "none", "pad": 0.6}
    axes.text(at, row, str(span.micro), ha="center", va="center", fontsize=8, color=ink, bbox=box)


def _legend(spans: Iterable[Span]) -> list[Any]:
    from matplotlib.patches import Patch

    kinds = dict.fromkeys(_kind(span) for span in spans)
    looks = {WORDS.get(kind, kind): style.LOOKS.get(kind, style.LOOKS["other"]) for kind in kinds}
    return [
        Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.4, label=words)
        for words, (colour, hatch) in looks.items()
    ]


def _kind(span: Span) -> str:
    """What it is by its looks: sums of buckets are one kind."""
    return "sum" if span.name.startswith("sum of") else span.name


def _zero(spans: Iterable[Span]) -> float:
    return min(span.begun for span in spans)


def _count(spans: Iterable[Span]) -> int:
    return 1 + max((span.micro or 0 for span in spans if span.name == "forward"), default=-1)
