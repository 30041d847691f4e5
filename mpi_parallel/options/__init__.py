"""Options from dataclasses: one field makes the flag, the TOML key, the help sentence and the check.

A configuration is a frozen dataclass whose fields are groups; a group is a frozen dataclass whose fields are made
by `option`. Values come from the defaults, then from `--config FILE.toml` (toml.py), then from the flags
(command_line.py); the last one wins.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Check = Callable[[Any], str | None]


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


def flag(name: str) -> str:
    """The flag of a field: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


def similar(wrong: str, known: Mapping[str, str]) -> str:
    """Ends a message with what was perhaps meant, as `known` calls it; says nothing where nothing is like it."""
    near = difflib.get_close_matches(wrong, known, n=1) or [word for word in known if wrong and word.startswith(wrong)]
    return f"; did you mean {known[near[0]]}?" if near else ""


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


def build(kind: type[Any], given: Mapping[str, Any]) -> Any:
    """The configuration of these values and the defaults, all checked. Raises InputError."""
    return kind(**{name: _build_group(group, given) for name, group, _ in groups_of(kind)})


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
        near = similar(str(value), {choice: choice for choice in choices})
        raise InputError(f"{_word(field)} {value}: choose from {', '.join(choices)}{near}")
    for item in value if isinstance(value, tuple) else (value,):
        complaint = check(item) if check else None
        if complaint:
            raise InputError(f"{_word(field)} {item}: {complaint}")
    return value


def _word(field: dataclasses.Field[Any]) -> str:
    """What the user calls a field."""
    return str(field.metadata["name"]) if field.metadata["positional"] else flag(field.name)


def groups_of(kind: type[Any]) -> list[tuple[str, type[Any], dict[str, Any]]]:
    """(name, dataclass, its type hints) of each group of a configuration."""
    hints = typing.get_type_hints(kind)
    return [
        (group.name, hints[group.name], typing.get_type_hints(hints[group.name])) for group in dataclasses.fields(kind)
    ]


def base_type(hint: Any) -> tuple[Any, bool]:
    """(int, True) for tuple[int, ...], (int, False) for int and int | None."""
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(hint) if part is not type(None)), False
    return hint, False
