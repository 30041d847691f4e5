"""What a watchdog knows of the ranks: who moves, who waits, who does not answer; and how that is told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

LISTED = 16  # ranks in a message


@dataclass
class Sighting:
    """What a watchdog knows of a rank, with times of time.monotonic."""

    heard: float
    moved: float
    signs: str = ""  # stage, step, beats
    waits: bool = False
    doing: str = "starting"
    line: bool = False  # whether there is or was a line to it
    gone: bool = False  # it has said bye

    def hear(self, now: float, text: str) -> None:
        """A sign of life, as `signs_of_life` makes it."""
        *signs, waits, doing = text.split(" ", 4)
        self.heard, self.waits, self.doing = now, waits != "0", doing
        if self.signs != " ".join(signs):
            self.signs, self.moved = " ".join(signs), now

    @property
    def place(self) -> tuple[int, int]:
        """Stage and step: what all ranks go through alike."""
        stage, step, _ = map(int, (self.signs or "0 0 0").split())
        return stage, step


class Sightings:
    """All ranks that this one hears of: rank 0 of everyone, the others of rank 0 and of themselves."""

    def __init__(self, rank: int, hosts: Sequence[str], pids: Sequence[int], patience: float) -> None:
        """A rank that is not heard of for `patience` seconds is silent."""
        self.rank, self.hosts, self.pids, self.patience = rank, hosts, pids, patience
        now = time.monotonic()
        self.ranks = {other: Sighting(now, now) for other in (range(len(hosts)) if rank == 0 else (0, rank))}

    def __getitem__(self, rank: int) -> Sighting:
        return self.ranks[rank]

    @property
    def mine(self) -> Sighting:
        return self.ranks[self.rank]

    def forgive(self, seconds: float) -> None:
        """This process was stopped for so long: nothing that it did not hear meanwhile counts."""
        for sighting in self.ranks.values():
            sighting.heard += seconds
            sighting.moved += seconds

    def quiet(self, now: float) -> float:
        """Seconds since any rank moved."""
        return now - max(self.mine.moved, *(s.moved for s in self.ranks.values() if self.rank == 0 and not s.gone), 0.0)

    def silent(self, rank: int, now: float) -> bool:
        """Whether a rank does not answer."""
        return rank != self.rank and now - self.ranks[rank].heard > self.patience

    def missing(self, now: float) -> list[int]:
        """The ranks that the others wait for: silent ones, those at work while others wait, those behind; or none."""
        known = {rank: s for rank, s in self.ranks.items() if (s.line or rank == self.rank) and not s.gone}
        silent = {rank for rank in known if self.silent(rank, now)}
        awake = [sighting for rank, sighting in known.items() if rank not in silent]
        behind = {rank for rank, sighting in known.items() if sighting.place < max(s.place for s in awake)}
        if any(sighting.waits for sighting in awake):
            behind |= {rank for rank, sighting in known.items() if not sighting.waits}
        return sorted(silent | behind)

    def told(self, now: float) -> str:
        """Where everyone is: those that did not arrive, one by one, then those that wait for them."""
        missing = self.missing(now)
        others = [rank for rank, sighting in self.ranks.items() if rank not in missing and not sighting.gone]
        lines = self._listed("did not arrive", missing, now) + self._listed("waiting", others, now)
        if not missing:
            lines.append(
                "all ranks wait for each other: a message between them is lost, or they disagree on what is next"
            )
        return "".join(f"\n  {line}" for line in lines)

    def _listed(self, what: str, ranks: Sequence[int], now: float) -> list[str]:
        lines = [f"{what}: {self.describe(rank, now)}" for rank in ranks[:LISTED]]
        return lines + ([f"{what}: {len(ranks) - LISTED} more"] if len(ranks) > LISTED else [])

    def where(self, rank: int) -> str:
        """A rank, its host and its process."""
        return f"rank {rank} on {self.hosts[rank]} (process {self.pids[rank]})"

    def describe(self, rank: int, now: float) -> str:
        """Where it is, and for how long."""
        sighting = self.ranks[rank]
        if not self.silent(rank, now):
            state = "in a message" if sighting.waits else "at work"
            return f"{self.where(rank)}: {sighting.doing}, {state}, has not moved for {now - sighting.moved:.0f} s"
        state = "does not answer, is it stopped?" if sighting.line else "has no line to rank 0;"
        return f"{self.where(rank)} {state} Last heard {now - sighting.heard:.0f} s ago in: {sighting.doing}"
