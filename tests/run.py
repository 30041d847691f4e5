"""Run the tests on each MPI with each number of ranks, and say in the last line how they went.

    python -m tests.run [--mpi openmpi,mpich] [--ranks 1,2,3,4] [pytest's arguments]

The serial tests belong to 1 rank, which is pytest without mpirun. A run that outlasts its deadline is ended, and all
ranks show where they stood; processes left behind are a failure.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter

from tests.launch import MARK, mpirun_of, remaining, remove_segments, remove_sessions, segments, send
from tests.once import AGAIN

DEADLINE = 900  # seconds for one MPI with one number of ranks
NO_TESTS = 5  # pytest's exit status


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests on each MPI with each number of ranks.")
    parser.add_argument("--mpi", default="", help="openmpi, mpich or both with a comma; the first one of `make env`")
    parser.add_argument("--ranks", default="1,2,3,4", help="numbers of ranks, with commas")
    options, arguments = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and take along what was started

    total: Counter[str] = Counter()
    for number, mpi in enumerate(options.mpi.split(",")):
        for ranks in options.ranks.split(","):
            total += run(mpi, int(ranks), arguments, {AGAIN: "1"} if number else {})
    if not total["passed"]:
        print("no test has passed")
        total["failed"] += 1
    print(f"\n{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if total["failed"] else 0


def run(mpi: str, ranks: int, arguments: list[str], more: dict[str, str]) -> Counter[str]:
    """One pytest under one mpirun: how many tests passed, failed and were skipped."""
    mpirun = mpirun_of(mpi)
    environment = {**os.environ, **more, MARK: uuid.uuid4().hex}
    pytest = [sys.executable, "-m", "pytest", f"--color={'yes' if sys.stdout.isatty() else 'no'}", *arguments]
    if ranks == 1:
        # python alone takes the MPI of this mpirun where it is told its library
        library = subprocess.run([mpirun, "-n", "1", "printenv", "MPI4PY_LIBMPI"], capture_output=True, text=True)
        environment["MPI4PY_LIBMPI"] = library.stdout.strip()
        # Many of them start jobs and wait for them, so that there is room for one more than there are cores.
        command = [*pytest, "--numprocesses", str(min(8, len(os.sched_getaffinity(0)) + 1)), "--dist", "loadfile"]
    else:
        command = [mpirun, "-n", str(ranks), *pytest]
    print(f"\n--- {mpi or 'MPI'}, {ranks} rank{'s' if ranks > 1 else ''}: {' '.join(command)}", flush=True)

    remove_sessions()
    before = segments()
    last = ""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watchdog = threading.Timer(DEADLINE, stop, [environment[MARK]])
    watchdog.daemon = True
    watchdog.start()
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line if re.search(r" in [\d.]+s", line) else last
        status = process.wait()
        left = remaining(environment[MARK])
    finally:
        watchdog.cancel()
        send(environment[MARK], signal.SIGKILL)
        remove_segments(before)

    counts = Counter(
        {word: int(n) for n, word in re.findall(r"(\d+)(?:\x1b\[\S*?m)* (passed|failed|skipped|error)", last)}
    )
    counts["failed"] += counts.pop("error", 0)
    if left:
        print(f"left processes behind: {left}")
    selected = status == NO_TESTS and arguments  # -k and the like may well choose none for some number of ranks
    if left or (status and not selected and not counts["failed"]):
        print(f"{' '.join(command)}: exit status {status}")
        counts["failed"] += 1
    return counts


def stop(mark: str) -> None:
    print(f"\nnot ended within {DEADLINE} s: ending it", flush=True)
    send(mark, signal.SIGTERM, "python")  # on which each rank shows where it stands
    remaining(mark)
    send(mark, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
