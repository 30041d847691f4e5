"""What the doctor found: a table for people, JSON for programs, a status for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mpi_parallel.mpi.communicator import Communicator

READY, NOT_READY = 0, 1  # exit statuses
WIDTH = 14  # of the names in the table


@dataclass
class Section:
    """One thing that was looked at: rows for people, facts for programs, and what is wrong.

    A problem keeps a run from starting, from being right or from being kept; a warning costs time or needs a look.
    """

    name: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def tell(self, name: str, text: str, **facts: Any) -> None:
        """Add a row, and what programs are to know of it."""
        self.rows.append((name, text))
        self.facts |= facts


def status(sections: Iterable[Section], strict: bool) -> int:
    """The exit status: NOT_READY with a problem, in strict mode with a warning, too."""
    return NOT_READY if any(s.problems or (strict and s.warnings) for s in sections) else READY


def agree(sections: list[Section], world: Communicator) -> None:
    """Let every rank know what any rank has found wrong."""
    mine = json.dumps([(section.problems, section.warnings) for section in sections])
    told = [json.loads(text) for text in world.gather_text(mine)]
    for section, found in zip(sections, zip(*told, strict=True), strict=True):
        section.problems = list(dict.fromkeys(text for problems, _ in found for text in problems))
        section.warnings = list(dict.fromkeys(text for _, warnings in found for text in warnings))


def table(sections: list[Section]) -> list[str]:
    """For people: the rows, then what is wrong, then the verdict."""
    lines = []
    for section in sections:
        lines.append(section.name)
        lines += [f"  {name:<{WIDTH}}{text}" for name, text in section.rows]
    warnings = [text for section in sections for text in section.warnings]
    problems = [text for section in sections for text in section.problems]
    lines += [f"warning: {text}" for text in warnings] + [f"problem: {text}" for text in problems]
    verdict = "not ready" if problems else "ready"
    counts = [count(len(texts), word) for texts, word in ((problems, "problem"), (warnings, "warning")) if texts]
    return [*lines, f"{verdict}: {', '.join(counts)}" if counts else verdict]


def document(sections: list[Section], strict: bool) -> dict[str, Any]:
    """For programs: the facts of each section by its name, all warnings and problems, and the status."""
    return {
        "status": status(sections, strict),
        "warnings": [text for section in sections for text in section.warnings],
        "problems": [text for section in sections for text in section.problems],
        **{section.name: section.facts for section in sections},
    }


def count(number: int, word: str) -> str:
    """1 rank, 2 ranks."""
    return f"{number} {word}{'s' * (number != 1)}"
