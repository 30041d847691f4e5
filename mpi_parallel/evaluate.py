"""How good is a network? `mpirun -n 2 python -m mpi_parallel.evaluate --checkpoint runs/NAME --data FILE.h5`.

All figures follow from exact counts, which do not depend on the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import deliver, json_option, option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least
from mpi_parallel.result_merging.confusion import Evaluation, Tally
from mpi_parallel.training.applied import Applied, ApplyOptions

SENTENCE = "Evaluate a trained network: accuracy, loss, top-k, a table of the classes and the confusion matrix."
SHOWN = 20  # classes in the table and in the matrix; beyond, the worst are shown
TAKEN = "taken for:"
WIDEST = 24  # characters of a class name


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """what is told"""

    split: str = option(
        "test", "rows to evaluate; all takes a file without splits as a whole",
        choices=("train", "validation", "test", "all"),
    )  # fmt: skip
    labels: str | None = option(None, "path of the labels in a file of another layout", name="/PATH")
    top_k: tuple[int, ...] = option(
        (2, 5), "also tell how often the class is among so many most probable ones", check=at_least(1), name="K"
    )
    json: str | None = json_option()


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """All options of `python -m mpi_parallel.evaluate`."""

    apply: ApplyOptions
    evaluate: EvaluateOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Count on all ranks, tell on one; the exit status."""
    config = parse(EvaluateConfig, arguments, "mpi_parallel.evaluate", SENTENCE, speaks=world.rank == 0)
    options = config.evaluate
    applied = Applied(config.apply, options.split, world, options.labels, labelled=True)
    tally = Tally(applied.network.widths[-1])
    for _, z, t in applied.logits():
        tally.add(z, t)
    found = tally.merge(world)
    if world.rank == 0:
        _deliver(found, config, applied)
    applied.close()
    return 0


def _deliver(found: Evaluation, config: EvaluateConfig, applied: Applied) -> None:
    names = applied.classes or tuple(map(str, range(len(found.support))))
    options, ks = config.evaluate, [k for k in config.evaluate.top_k if k < len(names)]
    document = {
        **applied.facts, "data": applied.split.path, "images": applied.split.images, "split": options.split,
        **figures(found, names, ks),
    }  # fmt: skip
    facts = applied.facts
    step = f" (step {facts['step']})" if "step" in facts else ""
    head = f"{facts['checkpoint']}{step} on {applied.split.path}:{applied.split.images}"
    deliver(document, [head, *table(found, names, ks)], options.json)


def figures(found: Evaluation, names: tuple[str, ...], ks: list[int]) -> dict[str, Any]:
    """For programs: everything."""
    columns = {"precision": found.precision, "recall": found.recall, "f1": found.f1}
    return {
        "count": found.count,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "top_k": {str(k): found.top(k) for k in ks},
        "macro": {name: found.mean(values) for name, values in columns.items()},
        "weighted": {name: found.mean(values, weighted=True) for name, values in columns.items()},
        "per_class": [
            {
                "class": name,
                **{key: float(values[n]) for key, values in columns.items()},
                "support": int(found.support[n]),
            }
            for n, name in enumerate(names)
        ],
        "confusion_matrix": None if found.matrix is None else found.matrix.tolist(),
    }


def table(found: Evaluation, names: tuple[str, ...], ks: list[int]) -> list[str]:
    """For people: lines."""
    tops = "".join(f"  top-{k} {found.top(k):.4f}" for k in ks)
    lines = [f"{found.count:,} rows  loss {found.loss:.4f}  accuracy {found.accuracy:.4f}{tops}", ""]
    short = [name if len(name) <= WIDEST else name[: WIDEST - 1] + "…" for name in names]
    width = max(map(len, [*short, "weighted mean"]))
    lines.append(f"{'class':<{width}}  precision  recall      f1    rows")
    worst = sorted(sorted(range(len(names)), key=lambda n: (found.f1[n], n))[:SHOWN])
    for n in worst:
        row = found.precision[n], found.recall[n], found.f1[n], found.support[n]
        lines.append(_row(short[n], width, *row))
    if len(names) > SHOWN:
        lines.append(f"… these are the {SHOWN} of {len(names)} with the lowest f1")
    for label, weighted in (("mean", False), ("weighted mean", True)):
        p, r, f = (found.mean(values, weighted) for values in (found.precision, found.recall, found.f1))
        lines.append(_row(label, width, p, r, f, found.count))
    return [*lines, "", *(_matrix(found, short) if len(names) <= SHOWN else _mistakes(found, short))]


def _row(name: str, width: int, precision: float, recall: float, f1: float, rows: int) -> str:
    return f"{name:<{width}}  {precision:9.4f}  {recall:6.4f}  {f1:6.4f}  {rows:6,}"


def _matrix(found: Evaluation, names: list[str]) -> list[str]:
    """Rows are classes, columns what they were taken for."""
    assert found.matrix is not None
    cell = max(3, len(str(found.matrix.max(initial=0)))) + 1
    rows = [f"{n:>2} {name}" for n, name in enumerate(names)]
    width = max(map(len, [*rows, TAKEN]))
    head = f"{TAKEN:<{width}}" + "".join(f"{n:>{cell}}" for n in range(len(names)))
    counts = ("".join(f"{value:>{cell}}" for value in row) for row in found.matrix.tolist())
    return [head, *(f"{name:<{width}}{row}" for name, row in zip(rows, counts, strict=True))]


def _mistakes(found: Evaluation, names: list[str]) -> list[str]:
    return [f"{count:6,} rows of {names[t]} were taken for {names[p]}" for t, p, count in found.confused(10)]


if __name__ == "__main__":
    launch(main)
