"""report.html: everything about a run on one page that needs nothing else, no network either."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mpi_parallel.options import InputError
from mpi_parallel.pictures import style
from mpi_parallel.pictures.accounts import accounts
from mpi_parallel.pictures.confusion import confusion
from mpi_parallel.pictures.curves import curves
from mpi_parallel.pictures.records import Record
from mpi_parallel.pictures.timeline import pipeline, timeline
from mpi_parallel.pictures.weights import weights
from mpi_parallel.pictures.whole import whole

SECTIONS: dict[str, Callable[[Record], Any]] = {
    "Learning curves": lambda run: curves([run]),
    "What is taken for what": confusion,
    "The first layer": weights,
    "Where the time went": accounts,
    "A step of the pipeline": pipeline,
    "A step of every rank": timeline,
}
WITHOUT = "The pictures are missing, as matplotlib was not there: pip install 'mpi_parallel[plots]', then"
STYLE = """
:root { color-scheme: light; --ink: #1b1b1b; --soft: #666; --line: #ddd; --accent: #0072B2 }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; color: var(--accent) }
p.lead { color: var(--soft); margin: .2rem 0 1.2rem }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem }
.figures div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem }
.figures b { display: block; font-size: 1.35rem } .figures span { color: var(--soft); font-size: .85rem }
img { max-width: 100%; height: auto } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem }
table { border-collapse: collapse; font-size: .85rem } td, th { padding: .15rem .7rem .15rem 0; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid var(--line) }
.wide { overflow-x: auto } summary { cursor: pointer; color: var(--accent) }
@media print { details > * { display: block } body { margin: 0 } }
"""


def write_page(run: Record, path: Path) -> None:
    """Write the page of a run, whole or not at all."""
    text = page(run)
    with whole(path) as part:
        part.write_text(text, "utf-8")


def page(run: Record) -> str:
    """The page as HTML: pictures where matplotlib is there, tables in any case."""
    start, end = run.start, run.end
    title = f"{run.name}: {_result(end)}"
    where = f"{start.get('ranks', '?')} ranks on {', '.join(start.get('hosts', []))}"
    parts = [
        f"<h1>{escape(run.name)}</h1>",
        f"<p class=lead>{escape(_result(end))}, {escape(where)}, merged by {escape(str(start.get('merge')))}</p>",
        f"<div class=figures>{''.join(_figure(*pair) for pair in _figures(run))}</div>",
        *(_pictures(run) if style.available() else _instead(run)),
        _section("Epochs", f"<details><summary>Every epoch</summary><div class=wide>{_epochs(run)}</div></details>"),
        _section("How to repeat it", _repeat(run)),
        _section("Configuration", f"<pre>{escape(_config(run))}</pre>"),
        _section("Environment", _environment(start)),
    ]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
    return (
        f"<!doctype html>\n<html lang=en>{head}<style>{STYLE}</style>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _pictures(run: Record) -> Iterable[str]:
    """Those that this run has something for."""
    for heading, draw in SECTIONS.items():
        try:
            image = base64.b64encode(style.image_of(draw(run), "svg")).decode()
        except InputError:  # a run without a trace, without test rows, …
            continue
        yield _section(heading, f"<img alt='{escape(heading)}' src='data:image/svg+xml;base64,{image}'>")


def _instead(run: Record) -> Iterable[str]:
    """In place of the pictures."""
    yield _section("Pictures", f"<p>{WITHOUT} <code>python -m mpi_parallel.plot {escape(str(run.path))}</code></p>")
    gallery = run.gallery
    if gallery is not None and gallery.confusion.sum():
        head = ["is \\ taken for", *gallery.classes]
        rows = [[name, *row] for name, row in zip(gallery.classes, gallery.confusion.tolist(), strict=True)]
        yield _section("What is taken for what", f"<div class=wide>{_table(head, rows)}</div>")


def _figures(run: Record) -> Iterable[tuple[str, str]]:
    """The numbers that one looks for first."""
    start, end, epochs = run.start, run.end, run.epochs
    if end.get("test_accuracy") is not None:
        yield f"{end['test_accuracy']:.2%}", f"test accuracy, loss {end['test_loss']:.4f}"
    if epochs and (validation := epochs[-1].get("validation_accuracy")) is not None:
        yield f"{validation:.2%}", "validation accuracy, last epoch"
        best = min(epochs, key=lambda epoch: epoch["validation_loss"])
        if best is not epochs[-1]:
            yield f"{best['validation_accuracy']:.2%}", f"validation accuracy of epoch {best['epoch']}, in best.h5"
    if epochs:
        yield f"{epochs[-1]['samples_per_second']:,.0f}", "training samples a second, last epoch"
    if end:
        yield f"{end['seconds']:.1f} s", f"{end['step']:,} steps, {end['epochs']} epochs"
    if "parameters" in start:
        yield f"{start['parameters']:,}", f"parameters, {start.get('precision')} on {start.get('device')}"


def _epochs(run: Record) -> str:
    keys = {
        "epoch": "d", "step": "d", "train_loss": ".4f", "train_accuracy": ".4f", "validation_loss": ".4f",
        "validation_accuracy": ".4f", "samples_per_second": ",.0f", "seconds": ".2f", "lr": ".2e", "slowest_rank": "d",
    }  # fmt: skip
    rows = [["" if e.get(key) is None else format(e[key], form) for key, form in keys.items()] for e in run.epochs]
    return _table([key.replace("_", " ") for key in keys], rows)


def _repeat(run: Record) -> str:
    """The command, and what its result should be."""
    start, end = run.start, run.end
    exact = "to the bit on any number of ranks" if start.get("groups") else "to rounding, on as many ranks"
    digest = end.get("weights_sha256", "")
    command = f"mpirun -n {start.get('ranks', 1)} python -m mpi_parallel.train --config {run.path / 'config.toml'}"
    merge = f" --merge {start['merge']}" if start.get("merge") and not start.get("groups") else ""
    repeat = f"{command}{merge} --out runs/again"
    return (
        f"<pre>{escape(repeat)}</pre><p>gives the same weights {exact}, with the same data, versions and kind of "
        f"processor. Digest of the weights:</p><pre>{escape(digest)}</pre>"
    )


def _environment(start: dict[str, Any]) -> str:
    rows = [[name, version] for name, version in start.get("versions", {}).items()]
    grid = " x ".join(f"{axis} {size}" for axis, size in start.get("grid", {}).items())
    rows += [["arithmetic", start.get("arithmetic", "")], ["threads a rank", start.get("threads", "")], ["grid", grid]]
    return _table(["", ""], rows)


def _config(run: Record) -> str:
    path = run.path / "config.toml"
    return path.read_text("utf-8") if path.exists() else ""


def _result(end: dict[str, Any]) -> str:
    return f"{end['reason']} after {end['step']:,} steps" if end else "not ended"


def _section(heading: str, body: str) -> str:
    return f"<h2>{escape(heading)}</h2>\n{body}"


def _figure(number: str, words: str) -> str:
    return f"<div><b>{escape(number)}</b><span>{escape(words)}</span></div>"


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
