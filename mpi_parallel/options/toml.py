"""A configuration from a TOML file, and back."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpi_parallel.options import InputError, base_type, groups_of, similar, to_tables


def read_toml(kind: type[Any], path: Path) -> dict[str, Any]:
    """The options of a TOML file, each in the table of its group; relative `data` and `out` stay as written."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: {error}") from None
    known = {name: hints for name, _, hints in groups_of(kind)}
    given: dict[str, Any] = {}
    for table, values in tables.items():
        if table not in known or not isinstance(values, Mapping):
            raise InputError(
                f"--config {path}: no table [{table}]; there are {', '.join(f'[{name}]' for name in known)}"
            )
        for key, value in values.items():
            field = key.replace("-", "_")
            if field not in known[table]:
                near = similar(field, {name: repr(name) for name in known[table]})
                raise InputError(f"--config {path}: [{table}] has no option '{key}'{near}")
            given[field] = _from_toml(value, known[table][field], f"--config {path}: [{table}] {key}")
    return given


def _from_toml(value: Any, hint: Any, where: str) -> Any:
    """A TOML value as the field's type; whole numbers serve as floats, and nothing else is converted."""
    base, many = base_type(hint)
    items = value if many and isinstance(value, list) else [value]
    if many != isinstance(value, list) or not all(_fits(item, base) for item in items):
        raise InputError(f"{where} = {value!r}: expected {'a list of ' if many else ''}{base.__name__}")
    return tuple(map(base, items)) if many else base(value)


def _fits(item: Any, base: Any) -> bool:
    if base is float and type(item) is int:
        return abs(item) <= sys.float_info.max  # TOML's whole numbers know no end
    return type(item) is base


def write_toml(config: Any, path: str | os.PathLike[str]) -> None:
    """Write the whole configuration where `--config` can read it again."""
    import tomli_w  # here, because only rank 0 writes

    Path(path).write_text(tomli_w.dumps(to_tables(config)), "utf-8")
