"""Draw runs and benchmarks: `python -m mpi_parallel.plot RUN… --to FILE.png|.svg|.html`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import InputError, option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import at_least
from mpi_parallel.pictures import style
from mpi_parallel.pictures.accounts import accounts
from mpi_parallel.pictures.confusion import confusion
from mpi_parallel.pictures.curves import curves
from mpi_parallel.pictures.page import write_page
from mpi_parallel.pictures.records import Record, read_benchmark
from mpi_parallel.pictures.scaling import points_of, scaling
from mpi_parallel.pictures.timeline import pipeline, timeline
from mpi_parallel.pictures.weights import weights

SENTENCE = "Draw runs: learning curves, confusion matrix, weights, where the time went, scaling, pipelines; or a page."
OF_A_RUN: dict[str, Callable[[Record], Any]] = {"confusion": confusion, "weights": weights, "time": accounts}
OF_A_STEP: dict[str, Callable[[Record, int | None], Any]] = {"pipeline": pipeline, "timeline": timeline}
PICTURES = ("curves", "scaling", *OF_A_RUN, *OF_A_STEP)


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """what to draw, and where to"""

    runs: tuple[str, ...] = option(
        (), "folders of runs, and JSON files of benchmarks (for scaling)", name="RUN", positional=True
    )
    to: str | None = option(
        None,
        "FILE.png or FILE.svg for one picture, FILE.html for a page with all of a run, or a folder for every picture; "
        "by default the folder pictures/ of the first run",
        name="FILE",
    )
    picture: str | None = option(
        None, "which one; by default curves, or scaling of benchmarks. time is where each rank's time went, timeline "
        "and pipeline are steps of a trace", choices=PICTURES,
    )  # fmt: skip
    step: int | None = option(
        None, "the step of a trace to draw; by default one that took as long as most", check=at_least(1)
    )


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """All options of `python -m mpi_parallel.plot`."""

    plot: PlotOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Draw on rank 0 what was asked for; the exit status."""
    options = parse(PlotConfig, arguments, "mpi_parallel.plot", SENTENCE, speaks=world.rank == 0).plot
    if not options.runs:
        raise InputError("RUN is missing: name the folder of a run, or the JSON of a benchmark")
    if world.rank == 0:
        files = [Path(name) for name in options.runs]
        benchmarks = [read_benchmark(path) for path in files if path.suffix == ".json"]
        for path in draw([Record(path) for path in files if path.suffix != ".json"], benchmarks, options):
            print(path, flush=True)
    return 0


def draw(runs: list[Record], benchmarks: list[dict[str, Any]], options: PlotOptions) -> list[Path]:
    """Write what the options ask for; the files. Raises InputError where that cannot be drawn."""
    to = Path(options.to) if options.to else (runs[0].path if runs else Path()) / "pictures"
    if to.suffix == ".html":
        if len(runs) != 1:
            raise InputError(f"--to {to}: a page shows one run, and {len(runs)} were named")
        write_page(runs[0], to)
        return [to]
    if to.suffix in (".png", ".svg"):
        style.save(_picture(options.picture or _usual(runs), runs, benchmarks, options.step), to)
        return [to]
    if to.suffix:
        raise InputError(f"--to {to}: pictures are .png or .svg, pages .html; a name without an ending is a folder")
    names = [options.picture] if options.picture else PICTURES if len(runs) == 1 else ("curves", "scaling")
    written = []
    for name in names:
        try:
            picture = _picture(name, runs, benchmarks, options.step)
        except InputError:
            if options.picture or not style.available():
                raise
            continue  # of all pictures those that there is something for
        written.append(to / f"{name}.png")
        style.save(picture, written[-1])
    if not written:
        raise InputError(f"{', '.join(options.runs)}: nothing to draw yet")
    return written


def _usual(runs: list[Record]) -> str:
    return "curves" if runs else "scaling"


def _picture(name: str, runs: list[Record], benchmarks: list[dict[str, Any]], step: int | None) -> Any:
    if name == "scaling":
        return scaling(points_of(runs, benchmarks))
    if name == "curves":
        return curves(runs)
    if len(runs) != 1:
        raise InputError(f"--picture {name} is of one run, and {len(runs)} were named")
    return OF_A_RUN[name](runs[0]) if name in OF_A_RUN else OF_A_STEP[name](runs[0], step)


if __name__ == "__main__":
    launch(main)
