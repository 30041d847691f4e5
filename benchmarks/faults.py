"""Break runs in every way, go on with --resume auto, and compare what they end with: python benchmarks/faults.py.

A round is one training, broken off and taken up some times, each time on another number of ranks, and at last left in
peace. After every fault the newest checkpoint or the one before has to be whole; every job has to end by itself; and
every training has to end with the digest of the one that nobody disturbed. What happens when is drawn from --seed and
the fault's number; where exactly it strikes is the machine's affair. Needs Open MPI 5; a full disk and a folder that
cannot be written need root, and are left out without.
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
from contextlib import contextmanager
from pathlib import Path
from shutil import copy
from typing import Any

import h5py
import numpy as np
from survive import ROOT, ranks_of
from trainings import Training, kill, listens, send

SMALL = ROOT / "data/fashion-mnist-small.h5"
FAULTS_OF_A_ROUND = 4
DISK = 16  # MiB of the small disk
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
KINDS = (
    "kill one",
    "kill one",
    "kill all",
    "kill all",
    "signal",
    "signal",
    "truncate",
    "flip",
    "data",
    "full",
    "locked",
)
ROOT_ONLY = ("full", "locked")


def strike(kind: str, training: Training) -> None:
    """One fault, and what has to be true behind it."""
    rng = training.rng
    ranks, moment = rng.choice([1, 2, 2, 3, 4]), rng.uniform(0.2, training.latest)
    number, place = rng.choice(SIGNALS), rng.random()
    before, heard = len(training.told), False
    job = training.start(ranks)
    while time.sleep(0.02) is None and job.poll() is None and moment > 0:
        moment -= 0.02
    alive = ranks_of(job.pid) if job.poll() is None else []
    if kind == "kill one" and alive:
        send(alive[int(place * len(alive))], signal.SIGKILL)
    elif kind == "signal" and alive:
        heard = listens(alive[int(place * len(alive))])
        send(alive[int(place * len(alive))], number)
    elif kind == "full":
        fill(training, job, place)
    elif kind == "locked":
        lock(training, job, place)
    else:
        kill(job)
    status = training.end(job)
    training.check()
    if heard:
        after_signal(status, training, training.told[before:])
    BETWEEN.get(kind, lambda *_: None)(training, place)


def after_signal(status: int, training: Training, told: list[dict[str, Any]]) -> None:
    """A run that listened leaves with 75, and nothing is lost by it; the signal may have come in its last moments."""
    end = told[-1] if told else {"step": "none, before training", "reason": "signal"}
    saved = [path.name for path in training.checkpoints()]
    whole = not told or (end["event"] == "end" and saved[:1] == [f"step-{end['step']:08d}.h5"])
    if status != (75 if end.get("reason") == "signal" else 0) or not whole:
        training.wrong.append(f"status {status}, newest of {saved}, after a signal at step {end['step']}")


def fill(training: Training, job: subprocess.Popen[bytes], place: float) -> None:
    """The disk is full for a while, as somebody else's files are on it, too."""
    filler = training.folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    until = time.monotonic() + 0.2 + 2 * place
    while job.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    filler.unlink()
    if place < 0.7:
        kill(job)


def lock(training: Training, job: subprocess.Popen[bytes], place: float) -> None:
    """No file can be made, renamed or removed in the folder of checkpoints for a while."""
    folder = training.out / "checkpoints"
    if folder.exists():
        subprocess.run(["chattr", "+i", str(folder)], check=True)
    until = time.monotonic() + 0.2 + 2 * place
    while job.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    if folder.exists():
        subprocess.run(["chattr", "-i", str(folder)], check=True)
    if place < 0.7:
        kill(job)


def truncate(training: Training, place: float) -> None:
    if len(training.checkpoints()) > 1:
        newest = training.checkpoints()[0]
        os.truncate(newest, int(place * newest.stat().st_size))
        training.check()


def flip(training: Training, place: float) -> None:
    if len(training.checkpoints()) > 1:
        newest = training.checkpoints()[0]
        content = bytearray(newest.read_bytes())
        content[int(place * len(content))] ^= 16
        newest.write_bytes(content)
        training.check()


def change_data(training: Training, place: float) -> None:
    """Another label: the job has to refuse, and goes on when the file is as it was."""
    if not training.checkpoints():  # then another training would begin
        return
    with h5py.File(training.data, "r+") as file:
        labels, row = file["train/labels"], int(place * 12000)
        before = labels[row]
        labels[row] = (int(before) + 1) % 10
    status = training.end(training.start(2))
    if status != 2 or "the training data is 12000 rows of" not in training.log:
        training.wrong.append(f"status {status} with other data")
    with h5py.File(training.data, "r+") as file:
        file["train/labels"][row] = before


BETWEEN = {"truncate": truncate, "flip": flip, "data": change_data}


def play(training: Training, kinds: list[str], expected_digest: str) -> None:
    """A whole round."""
    for kind in kinds:
        strike(kind, training)
    status = training.end(training.start(2))
    training.count_loss()
    digest = training.told[-1].get("weights_sha256") if training.told else None
    if status or digest != expected_digest:
        training.wrong.append(f"ended with status {status} and digest {digest}\n{training.log[-3000:]}")


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of its own under a folder, where that may be had."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}M", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def can_lock(folder: Path) -> bool:
    """Whether this user may mount a disk and forbid even itself to change a folder."""
    with small_disk(folder):
        mounted = os.path.ismount(folder)
    locked = [subprocess.run(["chattr", sign, str(folder)], capture_output=True).returncode for sign in ("+i", "-i")]
    return mounted and not any(locked)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--latest", type=float, default=4.0, help="seconds after its start at which a job is struck")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds for a job; some five on a quiet machine")
    parser.add_argument("--json", type=Path, help="write the outcome here")
    options = parser.parse_args()
    done, wrong, lost, rounds = Counter[str](), list[str](), list[int](), 0
    with tempfile.TemporaryDirectory() as name:
        kinds = [kind for kind in KINDS if kind not in ROOT_ONLY or can_lock(Path(name))]
        calm = Training(Path(name) / "calm", SMALL, options.steps, random.Random(), 0.0, options.deadline)
        assert calm.end(calm.start(2)) == 0, calm.log
        digest = calm.told[-1]["weights_sha256"]
        while done.total() < options.faults:
            rng = random.Random(f"{options.seed}/{rounds}")
            drawn = [rng.choice(kinds) for _ in range(min(FAULTS_OF_A_ROUND, options.faults - done.total()))]
            folder = Path(name) / f"round-{rounds}"
            folder.mkdir()
            with small_disk(folder):
                data = folder / "data.h5"
                training = Training(
                    folder, Path(copy(SMALL, data)), options.steps, rng, options.latest, options.deadline
                )
                play(training, drawn, digest)
                done.update(drawn)
                wrong += [f"round {rounds}, {drawn}: {what}" for what in training.wrong]
                lost += training.lost
            print(f"round {rounds}: {', '.join(drawn)}: {'; '.join(training.wrong) or 'right'}", flush=True)
            rounds += 1
    report = {
        "faults": done.total(), "by kind": dict(sorted(done.items())), "trainings": rounds, "seed": options.seed,
        "ended with a wrong digest": sum("ended with" in what for what in wrong),
        "hung": sum("hung" in what for what in wrong),
        "newest and previous checkpoint both unreadable": sum("no whole" in what for what in wrong),
        "other": sum(not any(word in what for word in ("ended with", "hung", "no whole")) for what in wrong),
        "samples lost a fault": {"median": float(np.median(lost or [0])), "most": max(lost, default=0)},
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
