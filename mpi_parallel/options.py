"""Options from dataclasses: one field makes the flag, the TOML key, the help sentence and the check.

A configuration is a frozen dataclass whose fields are groups; a group is a frozen dataclass whose fields are made
by `option`. Values come from the defaults, then from `--config FILE.toml`, then from the flags; the last one wins.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import json
import os
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from mpi_parallel.commands import examples

T = TypeVar("T")
Check = Callable[[Any], str | None]
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class InputError(ValueError):
    """What the user gave is wrong; the message alone tells what and where, and the exit status is 2."""


def option(
    default: Any,
    sentence: str,
    *,
    check: Check | None = None,
    choices: Sequence[str] = (),
    name: str = "",
    positional: bool = False,
    alone: str | None = None,
) -> Any:
    """A dataclass field that is also a flag; `default=...` makes it required, `name` is its placeholder in --help.

    A `positional` one is given by its place, without a flag; one with `alone` may stand without a value, and has that.
    """
    metadata = {
        "sentence": sentence, "check": check, "choices": tuple(choices), "name": name, "positional": positional,
        "alone": alone,
    }  # fmt: skip
    if default is ...:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def json_option() -> Any:
    """The option --json of a command that prints a table; `deliver` does what it says."""
    return option(None, "print JSON instead of the table, or write it to a file besides", name="FILE", alone="-")


def deliver(document: Mapping[str, Any], lines: Iterable[str], to: str | None) -> None:
    """Print the lines, or with `to` "-" the document as JSON instead, or write this to a file besides."""
    text = json.dumps(document, indent=1)
    print(text if to == "-" else "\n".join(lines), flush=True)
    if to is None or to == "-":
        return
    try:
        Path(to).write_text(text + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"--json {to}: {error}") from None


def at_least(low: float) -> Check:
    """A check that a number is `low` or more."""
    return lambda value: None if low <= value < float("inf") else f"must be at least {low}"


def between(low: float, high: float) -> Check:
    """A check that a number lies in [low, high)."""
    return lambda value: None if low <= value < high else f"must be at least {low} and below {high}"


def bytes_of(size: str) -> int:
    """The bytes of a size such as 512M or 2.5G; the letters stand for powers of 1024. Raises ValueError."""
    text = size.strip().upper().removesuffix("B").removesuffix("I")
    letter = text[-1:] if text[-1:] in UNITS else ""
    return int(float(text.removesuffix(letter)) * UNITS[letter])


def interval(value: str) -> str | None:
    """A check that a text is a number of steps, a time that `seconds_of` understands, or never."""
    if value.isdecimal() or value == "never":
        return None
    try:
        return None if 0 < seconds_of(value) < float("inf") else "must be more than nothing"
    except ValueError:
        return "give steps, such as 1000, or a time, such as 90s, 5m or 1h"


def memory_size(value: str) -> str | None:
    """A check that `bytes_of` understands the value."""
    try:
        return None if bytes_of(value) > 0 else "must be more than nothing"
    except (ValueError, OverflowError):
        return "give a size such as 512M or 2G"


def seconds_of(duration: str) -> float:
    """The seconds of 90, 90s, 10m, 1.5h, 1d or [hours:]minutes:seconds. Raises ValueError."""
    text = duration.strip().lower()
    if ":" in text:
        parts = [float(part) for part in text.split(":")]
        if len(parts) > 3 or min(parts) < 0:
            raise ValueError(duration)
        return sum(part * (1, 60, 3600)[power] for power, part in enumerate(reversed(parts)))
    letter = text[-1:] if text[-1:] in SECONDS else ""
    return float(text.removesuffix(letter)) * SECONDS[letter]


def duration(value: str) -> str | None:
    """A check that `seconds_of` understands the value."""
    try:
        return None if 0 <= seconds_of(value) < float("inf") else "must not be negative"
    except ValueError:
        return "give a time such as 90s, 10m, 2h or 1:30:00"


def time_limit(value: str) -> str | None:
    """A check that a text is auto or a time that is not over already."""
    if value == "auto":
        return None
    return duration(value) or (None if seconds_of(value) else "must be more than nothing")


def share(value: float) -> str | None:
    """A check that a number lies in [0, 1]."""
    return None if 0 <= value <= 1 else "must be from 0 to 1"


def power_of_two(value: int) -> str | None:
    """A check that a number is 1, 2, 4, 8, ..."""
    return None if value > 0 and value & (value - 1) == 0 else "must be a power of two"


def positive(value: float) -> str | None:
    """A check that a number is greater than zero and finite."""
    return None if 0 < value < float("inf") else "must be a positive number"


def parse(kind: type[T], argv: Sequence[str], command: str, sentence: str, speaks: bool = True) -> T:
    """Make a `kind` from the command line; of many ranks one `speaks`, that is, prints what --help asks for.

    Raises InputError for an unknown or missing option and for a bad value.
    """
    parser = _parser(kind, command, sentence, sys.stdout if speaks else io.StringIO())
    flags = vars(parser.parse_intermixed_args(list(argv)))  # intermixed: words without a flag may stand anywhere
    file = flags.pop("config", None)
    given = _read_toml(kind, Path(file)) if file else {}
    built: T = build(kind, {**given, **flags})
    return built


def to_tables(config: Any) -> dict[str, dict[str, Any]]:
    """The configuration as TOML tables (and JSON objects), options that are not set left out."""
    return {
        group.name: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(getattr(config, group.name)).items()
            if value is not None
        }
        for group in dataclasses.fields(config)
    }


def flag(name: str) -> str:
    """The flag of a field: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


class _Help(argparse.HelpFormatter):
    """Leaves the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """An argument parser for many ranks: it raises where argparse would print and exit, and prints where it is told."""

    out: TextIO = sys.stdout

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message}{self._nearest(message)} (python -m {self.prog} --help lists the options)")

    def _print_message(self, message: str, file: Any = None) -> None:
        self.out.write(message)

    def _nearest(self, message: str) -> str:
        if not message.startswith("unrecognized arguments: "):
            return ""
        wrong = message.split()[2].split("=")[0]
        near = difflib.get_close_matches(wrong, self._option_string_actions, n=1)
        return f"; did you mean {near[0]}?" if near else ""


def _groups(kind: type[Any]) -> list[tuple[str, type[Any], dict[str, Any]]]:
    """(name, dataclass, its type hints) of each group of a configuration."""
    hints = typing.get_type_hints(kind)
    return [
        (group.name, hints[group.name], typing.get_type_hints(hints[group.name])) for group in dataclasses.fields(kind)
    ]


def _parser(kind: type[Any], command: str, sentence: str, out: TextIO) -> _Parser:
    lines = examples(command.removeprefix("mpi_parallel."))
    epilog = "\n".join(["examples:", *(f"  {line}" for line in lines)]) if lines else None
    parser = _Parser(
        prog=command, description=sentence, epilog=epilog, allow_abbrev=False, argument_default=argparse.SUPPRESS,
        formatter_class=_Help,
    )  # fmt: skip
    parser.out = out
    fill(parser, kind)
    return parser


def fill(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """Give a parser the arguments of a configuration."""
    parser.add_argument("--config", metavar="FILE.toml", help="read options from this file; flags win over it")
    for name, group, hints in _groups(kind):
        section = parser.add_argument_group(name, group.__doc__)
        for field in dataclasses.fields(group):
            words = _argument(field, hints[field.name])
            if field.metadata["positional"]:
                section.add_argument(words.pop("dest"), **words | {"nargs": words.get("nargs", "?")})
            else:
                section.add_argument(flag(field.name), **words)


def _argument(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """What argparse is told of one field."""
    base, many = _base(hint)
    words: dict[str, Any] = {"dest": field.name, "help": _help(field).replace("%", "%%")}
    if base is bool:
        return words | {"action": argparse.BooleanOptionalAction}
    words["type"] = base
    if field.metadata["alone"] is not None:
        words |= {"nargs": "?", "const": field.metadata["alone"]}
    if field.metadata["choices"]:
        words["choices"] = field.metadata["choices"]
    else:
        words["metavar"] = field.metadata["name"] or {int: "N", float: "X"}.get(base, "TEXT")
    return words | ({"nargs": "*"} if many else {})


def _help(field: dataclasses.Field[Any]) -> str:
    sentence: str = field.metadata["sentence"]
    if field.default is dataclasses.MISSING:
        return sentence + " (required)"
    if field.default is None or isinstance(field.default, bool):
        return sentence
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return f"{sentence} (default {default})"


def _base(hint: Any) -> tuple[Any, bool]:
    """(int, True) for tuple[int, ...], (int, False) for int and int | None."""
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(hint) if part is not type(None)), False
    return hint, False


def _read_toml(kind: type[Any], path: Path) -> dict[str, Any]:
    """The options of a TOML file, each in the table of its group; relative `data` and `out` stay as written."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: {error}") from None
    known = {name: hints for name, _, hints in _groups(kind)}
    given: dict[str, Any] = {}
    for table, values in tables.items():
        if table not in known or not isinstance(values, Mapping):
            raise InputError(
                f"--config {path}: no table [{table}]; there are {', '.join(f'[{name}]' for name in known)}"
            )
        for key, value in values.items():
            field = key.replace("-", "_")
            if field not in known[table]:
                raise InputError(f"--config {path}: [{table}] has no option '{key}'{_similar(field, known[table])}")
            given[field] = _from_toml(value, known[table][field], f"--config {path}: [{table}] {key}")
    return given


def _similar(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _from_toml(value: Any, hint: Any, where: str) -> Any:
    """A TOML value as the field's type; whole numbers serve as floats, and nothing else is converted."""
    base, many = _base(hint)
    items = value if many and isinstance(value, list) else [value]
    if many != isinstance(value, list) or not all(_fits(item, base) for item in items):
        raise InputError(f"{where} = {value!r}: expected {'a list of ' if many else ''}{base.__name__}")
    return tuple(map(base, items)) if many else base(value)


def _fits(item: Any, base: Any) -> bool:
    if base is float and type(item) is int:
        return abs(item) <= sys.float_info.max  # TOML's whole numbers know no end
    return type(item) is base


def build(kind: type[Any], given: Mapping[str, Any]) -> Any:
    """The configuration of these values and the defaults, all checked. Raises InputError."""
    return kind(**{name: _build_group(group, given) for name, group, _ in _groups(kind)})


def _build_group(group: type[Any], given: Mapping[str, Any]) -> Any:
    values = {}
    for field in dataclasses.fields(group):
        if field.name in given:
            values[field.name] = _checked(field, given[field.name])
        elif field.default is dataclasses.MISSING:
            raise InputError(f"{_word(field)} is missing: {field.metadata['sentence']}")
    return group(**values)


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    value = tuple(value) if isinstance(value, list) else value
    choices, check = field.metadata["choices"], field.metadata["check"]
    if choices and value not in choices:
        raise InputError(f"{_word(field)} {value}: choose from {', '.join(choices)}")
    for item in value if isinstance(value, tuple) else (value,):
        complaint = check(item) if check else None
        if complaint:
            raise InputError(f"{_word(field)} {item}: {complaint}")
    return value


def _word(field: dataclasses.Field[Any]) -> str:
    """What the user calls a field."""
    return str(field.metadata["name"]) if field.metadata["positional"] else flag(field.name)


def write_toml(config: Any, path: str | os.PathLike[str]) -> None:
    """Write the whole configuration where `--config` can read it again."""
    import tomli_w  # here, because only rank 0 writes

    Path(path).write_text(tomli_w.dumps(to_tables(config)), "utf-8")
