"""From the command line to a configuration, and the text of --help, through argparse."""

from __future__ import annotations

import argparse
import dataclasses
import io
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from mpi_parallel.commands import examples
from mpi_parallel.options import InputError, base_type, build, flag, groups_of, similar
from mpi_parallel.options.toml import read_toml
from mpi_parallel.output import be_patient

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], command: str, sentence: str, speaks: bool = True) -> T:
    """Make a `kind` from the command line; of many ranks one `speaks`, that is, prints what --help asks for.

    Raises InputError for an unknown or missing option and for a bad value.
    """
    parser = _parser(kind, command, sentence, sys.stdout if speaks else io.StringIO())
    flags = vars(parser.parse_intermixed_args(list(argv)))  # intermixed: words without a flag may stand anywhere
    file = flags.pop("config", None)
    given = read_toml(kind, Path(file)) if file else {}
    built: T = build(kind, {**given, **flags})
    return built


def run_alone(main: Callable[[list[str]], int]) -> typing.NoReturn:
    """Be a program that is no rank of a job: ends with the status of `main`, and with 2 where it raises InputError."""
    be_patient()
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


class _Help(argparse.HelpFormatter):
    """Leaves the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """An argument parser for many ranks: it raises where argparse would print and exit, and prints where it is told."""

    out: TextIO = sys.stdout

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message}{self._nearest(message)} ({self.prog} --help lists the options)")

    def _print_message(self, message: str, file: Any = None) -> None:
        self.out.write(message)

    def _nearest(self, message: str) -> str:
        """The option, or the choice of one, that was perhaps meant."""
        if chosen := re.fullmatch(r"argument .*: invalid choice: '(.*)' \(choose from (.*)\)", message):
            return similar(chosen[1], {word: word for word in re.findall(r"[^', ]+", chosen[2])})
        if not message.startswith("unrecognized arguments: "):
            return ""
        wrong = message.split()[2].split("=")[0]
        return similar(wrong.lstrip("-"), {word.lstrip("-"): word for word in self._option_string_actions})


def _parser(kind: type[Any], command: str, sentence: str, out: TextIO) -> _Parser:
    lines = examples(command.removeprefix("mpi_parallel."))
    epilog = "\n".join(["examples:", *(f"  {line}" for line in lines)]) if lines else None
    parser = _Parser(
        prog=f"python -m {command}", description=sentence, epilog=epilog, allow_abbrev=False,
        argument_default=argparse.SUPPRESS, formatter_class=_Help,
    )  # fmt: skip
    parser.out = out
    fill(parser, kind)
    return parser


def fill(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """Give a parser the arguments of a configuration."""
    parser.add_argument("--config", metavar="FILE.toml", help="read options from this file; flags win over it")
    for name, group, hints in groups_of(kind):
        section = parser.add_argument_group(name, group.__doc__)
        for field in dataclasses.fields(group):
            words = _argument(field, hints[field.name])
            if field.metadata["positional"]:
                section.add_argument(words.pop("dest"), **words | {"nargs": words.get("nargs", "?")})
            else:
                section.add_argument(flag(field.name), **words)


def _argument(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """What argparse is told of one field."""
    base, many = base_type(hint)
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
    if field.default is None or field.default == () or isinstance(field.default, bool):
        return sentence
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return f"{sentence} (default {default})"
