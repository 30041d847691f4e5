"""Cut the network between two hosts in mid-training and see both end: python benchmarks/cut_link.py.

The hosts are network namespaces of this machine, tied by a pair of virtual interfaces; it needs root, `ip`, `unshare`
and Open MPI. A rank trains on each. In the second epoch one end of the cable goes down: the watchdogs have to notice
and to tell, and no rank may be left on either host. What is left of the launcher is told. Then the cable is mended,
and `--resume auto` has to reach the digest of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from survive import MPIRUN, ROOT, events
from trainings import whole

from mpi_parallel.mpi.launcher import child_environment

HOSTS = {"cut1": "10.88.0.1", "cut2": "10.88.0.2"}
MARK = "MPI_PARALLEL_CUT_LINK"
AGENT = """#!/bin/bash
# In place of ssh: [options of ssh] HOST COMMAND...
while [[ $1 == -* ]]; do case $1 in -l | -p | -o | -i | -F) shift 2 ;; *) shift ;; esac; done
declare -A names=([10.88.0.1]=cut1 [10.88.0.2]=cut2)
host=${names[$1]:-$1}; shift
exec unshare --uts ip netns exec "$host" bash -c 'hostname "$0"; exec bash -c "$*"' "$host" "$@"
"""
SETTINGS = (
    "--prtemca plm_ssh_agent {agent} --prtemca prte_if_include 10.88.0.0/24 "
    "--mca btl tcp,self --mca pml ob1 --mca btl_tcp_if_include 10.88.0.0/24 --bind-to none "
    "--host 10.88.0.1:1,10.88.0.2:1"
)


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


@contextmanager
def two_hosts() -> Iterator[None]:
    """Two namespaces and a cable."""
    try:
        for name in HOSTS:
            ip(f"netns add {name}")
        ip("-n cut1 link add eth0 type veth peer name eth0 netns cut2")
        for name, address in HOSTS.items():
            ip(f"-n {name} addr add {address}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
            ip(f"-n {name} link set lo up")
        yield
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def start(folder: Path, name: str, options: list[str]) -> subprocess.Popen[str]:
    """A job of a rank on each host, from the first."""
    agent = folder / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    mpirun = [str(MPIRUN), *SETTINGS.format(agent=agent).split()]
    data = ["--data", str(ROOT / "data/fashion-mnist-small.h5"), "--out", str(folder / name), "--threads", "1"]
    program = [sys.executable, "-m", "mpi_parallel.train", *data, "--reproducible", "--progress", "none", "--no-report"]
    environment = child_environment() | {
        MARK: name,
        "UCX_TLS": "tcp,self",
        "UCX_NET_DEVICES": "eth0",
        "PYTHONPATH": str(ROOT),
    }
    passed = ["-x", MARK, "-x", "PYTHONPATH"]
    command = ["unshare", "--uts", "ip", "netns", "exec", "cut1", "sh", "-c", 'hostname cut1; exec "$@"', "sh"]
    return subprocess.Popen(
        [*command, *mpirun, *passed, "-n", "2", *program, *options],
        stdout=(folder / f"{name}.log").open("w"), stderr=subprocess.STDOUT, env=environment, cwd=ROOT, text=True,
    )  # fmt: skip


def inhabitants() -> dict[int, str]:
    """The processes of both hosts."""
    found = {}
    for name in HOSTS:
        told = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
        for number in told:
            with suppress(OSError):
                found[int(number)] = f"{name}: {Path(f'/proc/{number}/cmdline').read_text()}".replace("\0", " ")[:100]
    return found


def cut(folder: Path, options: list[str], timeout: int, patience: float) -> dict[str, Any]:
    """Train, cut, wait for the end of everything; what was seen."""
    job = start(folder, "run", [*options, "--hang-timeout", f"{timeout}s", "--checkpoint-every", "40"])
    metrics = folder / "run" / "metrics.jsonl"
    while job.poll() is None and not (metrics.exists() and '"epoch": 2' in metrics.read_text()):
        time.sleep(0.05)
    assert job.poll() is None, (folder / "run.log").read_text()
    ip("-n cut2 link set eth0 down")
    began = time.monotonic()
    ranks, left = 0.0, inhabitants()
    while left and time.monotonic() - began < patience:
        time.sleep(0.2)
        left = inhabitants()
        if any(line.split()[1] == sys.executable for line in left.values()):
            ranks = time.monotonic() - began
    for number in left:
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)
    status, seconds = job.wait(), time.monotonic() - began
    ip("-n cut2 link set eth0 up")
    log = (folder / "run.log").read_text(errors="replace")
    newest = max((folder / "run" / "checkpoints").glob("step-*.h5"))
    return {
        "status": status, "seconds to the end of all ranks": round(ranks, 1), "and of launchers": round(seconds, 1),
        "left": sorted(left.values()), "rank 1 named": "did not arrive: rank 1 on cut2" in log,
        "ended by a watchdog": log.count("(--hang-timeout): ending the job"),
        "stacks": log.count("stands here:"), "newest checkpoint whole": whole(newest), "log": log,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--timeout", type=int, default=10, help="--hang-timeout of the job, in seconds")
    parser.add_argument("--patience", type=float, default=90.0, help="seconds for all to have ended after the cut")
    options = parser.parse_args()
    steps = ["--steps", str(options.steps)]
    with tempfile.TemporaryDirectory() as name, two_hosts():
        folder = Path(name)
        seen = cut(folder, steps, options.timeout, options.patience)
        log = seen.pop("log")
        again = start(folder, "run", [*steps, "--resume", "auto"]).wait()
        calm = start(folder, "calm", steps).wait()
        digests = [events(folder / run)[-1].get("weights_sha256") for run in ("run", "calm")]
        seen |= {"statuses after that": [again, calm], "same digest": digests[0] == digests[1] is not None}
    ranks = [line for line in seen["left"] if line.split()[1] == sys.executable]
    well = seen["newest checkpoint whole"] and seen["ended by a watchdog"] and seen["rank 1 named"]
    right = well and not (ranks or again or calm) and seen["same digest"]
    if not right:
        print(log[-6000:])
    print(json.dumps(seen, indent=1))
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
