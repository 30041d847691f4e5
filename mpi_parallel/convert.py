"""Bring images into our layout, on all ranks: `mpirun -n 4 python -m mpi_parallel.convert train.csv --to train.h5`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpi_parallel.data_parallel import conversion
from mpi_parallel.data_parallel.formats.detect import open_sources, refuse_unused
from mpi_parallel.data_parallel.formats.source import Source, SourceOptions, share
from mpi_parallel.data_parallel.intake import BUDGET, Intake, Store, refuse_mixture
from mpi_parallel.data_parallel.labels import Labels, common_names
from mpi_parallel.data_parallel.memory import available
from mpi_parallel.data_parallel.writing import check_target, unfinished_name
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.session import launch
from mpi_parallel.options import InputError, option
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.values import between
from mpi_parallel.training.progress import terminal_columns

SENTENCE = (
    "Convert CSV (.gz too), pairs of IDX files, NPZ, class folders of pictures or HDF5 into one HDF5 file to train on."
)
SHOWN = 10  # bad rows that are told on the screen; a file tells all


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """what becomes what"""

    source: tuple[str, ...] = option(..., "files or folders to convert", name="SOURCE", positional=True)
    to: str = option(..., "file to write; it appears only once it is whole", name="OUT.h5")
    test: tuple[str, ...] = option((), "sources that are the test split", name="SOURCE")
    split: tuple[float, ...] = option(
        (), "shares of train, validation and test, the same in each class, of all rows that are not validation or test "
        "in their source; without it 0.7 0.1 0.2, or all for training where the sources bring a test split",
        check=between(0, 1.0000001), name="SHARE",
    )  # fmt: skip
    seed: int = option(0, "seed of the splits", check=between(0, 2**32))
    scale: str = option(
        "feature", "compute mean and deviation of the training images: one number, or one a feature",
        choices=("none", "scalar", "feature"),
    )  # fmt: skip
    clean: str = option("drop", "leave bad rows out, or fail because of them", choices=("drop", "fail"))
    dtype: str = option(
        "auto", "type of the pixels; auto is that of the source, for CSV the smallest that holds all",
        choices=("auto", "uint8", "uint16", "float32", "float64"),
    )  # fmt: skip
    parts: bool = option(
        False, "write a part file a rank under a virtual data set, where the file system is slow at many writers"
    )
    merge_parts: bool = option(False, "make one file of the parts in the end")
    progress: str = option("auto", "auto is a bar on a terminal and nothing elsewhere", choices=("auto", "bar", "none"))


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """All options of `python -m mpi_parallel.convert`."""

    convert: ConvertOptions
    source: SourceOptions


def main(world: Communicator, arguments: list[str]) -> int:
    """Read, clean, split, write and standardise; the exit status."""
    began = time.perf_counter()
    config = parse(ConvertConfig, arguments, "mpi_parallel.convert", SENTENCE, speaks=world.rank == 0)
    options, target = config.convert, Path(config.convert.to)
    dtype = None if options.dtype == "auto" else np.dtype(options.dtype)
    refuse_unused((*options.source, *options.test), config.source)
    sources = open_sources(options.source, config.source) + open_sources(options.test, config.source, "test")
    refuse_mixture(sources)
    check_target(target, [source.path for source in sources])
    shares = _shares(options.split, sources)
    if options.split:
        _share_out_training(sources)
    names = common_names(sources)

    room = min(BUDGET, available() // (4 * world.node().size))
    with closing(Store(target.parent, room)) as store:
        labels = Labels(sources[0].named, config.source.classes or names)
        intake = Intake(sources, labels, store, world, dtype)
        with _bar(options.progress, sources, world) as told:
            intake.read(told)
        intake.agree()
        _report(intake, options.clean, target)
        plan = conversion.plan(intake, shares, options.seed, intake.dtype, options.scale)
        facts = _facts(intake, shares, options.seed)

        def finish(unfinished: Path) -> None:
            conversion.describe(unfinished, facts, options.scale, world)
            _list_bad(intake, unfinished)

        conversion.write(target, intake, plan, options.parts, options.merge_parts, finish)
    if world.rank == 0:
        _keep_list(target)
        _tell(target, plan, time.perf_counter() - began, world.size)
    return 0


def _facts(intake: Intake, shares: tuple[float, ...], seed: int) -> dict[str, Any]:
    """Root attributes of the file: where its rows come from."""
    return {
        "classes": intake.classes,
        "seed": seed,
        "split": shares,
        "source": _text(", ".join(source.path.name for source in intake.sources)),
        "source_first_rows": intake.first_rows(),
        "rows_left_out": len(intake.bad),
    }


def _text(names: str) -> str:
    """Names of files as text, escaped where they are none."""
    return names.encode("utf-8", "backslashreplace").decode()


def _shares(asked: tuple[float, ...], sources: list[Source]) -> tuple[float, ...]:
    """Shares of train, validation and test, of the rows that belong to no split yet."""
    if not asked:
        return (1.0, 0.0, 0.0) if any(source.split for source in sources) else (0.7, 0.1, 0.2)
    if len(asked) > 3 or abs(sum(asked) - 1) > 1e-6:
        words = " ".join(f"{share:g}" for share in asked)
        raise InputError(
            f"--split {words}: one to three shares (train, validation, test) that sum to 1, not {sum(asked):g}"
        )
    return (*asked, 0.0, 0.0)[:3]


def _share_out_training(sources: list[Source]) -> None:
    """Have the rows that sources bring as training rows shared out, too: that is what --split asks for."""
    for source in sources:
        source.split = None if source.split == "train" else source.split
    if all(source.split for source in sources):
        raise InputError("--split: there is nothing to share out, as all sources are for validation or test")


@contextmanager
def _bar(kind: str, sources: list[Source], world: Communicator) -> Iterator[Callable[[], None]]:
    """What hears of the blocks that are read: a bar of rank 0's share, which is like the others', or nothing."""
    columns = terminal_columns() if world.rank == 0 and kind != "none" else None
    if not columns and (kind != "bar" or world.rank):
        yield lambda: None
        return
    from tqdm import tqdm  # here, because only one rank shows a bar

    counted = all(source.units is not None for source in sources)
    total = sum(sum(1 for _ in units) for units in share(sources, world.size, 0)) if counted else None
    with tqdm(desc="read", total=total, unit="block", ncols=columns or 100, leave=False) as bar:
        yield lambda: bar.update() and None


def _report(intake: Intake, clean: str, target: Path) -> None:
    """Tell which rows are left out, or fail because of them, or because there are no others."""
    if not intake.bad:
        return
    counts = Counter(bad.source for bad in intake.bad)
    where = ", ".join(f"{count:,} of {intake.sources[number].path}" for number, count in counts.items())
    lines = [intake.describe(bad) for bad in intake.bad[:SHOWN]]
    more = f"\n  … and {len(intake.bad) - SHOWN:,} more" if len(intake.bad) > SHOWN else ""
    shown = "\n  ".join(lines) + more
    bad = f"{len(intake.bad):,} bad row{'s' * (len(intake.bad) > 1)}"
    if not len(intake.labels):
        hint = "\n--ignore COLUMN leaves a column out" if all("not a number" in line for line in lines) else ""
        raise InputError(f"no good rows were found, but {bad}: {where}\n  {shown}{hint}")
    if clean == "fail":
        raise InputError(f"{bad}: {where}\n  {shown}\n--clean drop leaves them out")
    if intake.comm.rank == 0:
        print(f"left out {bad}: {where}; {_list_of(target)} will list all\n  {shown}", flush=True)


def _list_of(path: Path) -> Path:
    """Where the rows are listed that are left out of a file; beside one that is unfinished it is as short-lived."""
    return path.with_name(path.name + ".left-out.txt")


def _list_bad(intake: Intake, unfinished: Path) -> None:
    if intake.bad and intake.comm.rank == 0:
        lines = "\n".join(intake.describe(bad) for bad in intake.bad)
        try:
            _list_of(unfinished).write_text(_text(lines) + "\n")
        except OSError as error:
            raise InputError(f"{_list_of(unfinished)}: cannot be written: {error}") from None


def _keep_list(target: Path) -> None:
    """Give the list its name, now that the file has its own; one of an earlier run is gone."""
    try:
        _list_of(unfinished_name(target)).replace(_list_of(target))
    except FileNotFoundError:
        _list_of(target).unlink(missing_ok=True)


def _tell(target: Path, plan: conversion.Plan, seconds: float, ranks: int) -> None:
    images = {name.partition("/")[0]: shape for name, (shape, _) in plan.layout.items() if name.endswith("images")}
    sizes = ", ".join(f"{shape[0]:,} {name}" for name, shape in images.items())
    shape, dtype = next(iter(plan.layout.values()))
    kind = f"{dtype} {' x '.join(map(str, shape[1:]))}"
    print(f"{target}: {sizes}; {kind}; {seconds:.2f} s on {ranks} rank{'s' * (ranks > 1)}", flush=True)


if __name__ == "__main__":
    launch(main)
