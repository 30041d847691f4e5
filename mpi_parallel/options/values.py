"""What the value of an option may be: checks, and sizes and times with units."""

from __future__ import annotations

from mpi_parallel.options import Check

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


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
