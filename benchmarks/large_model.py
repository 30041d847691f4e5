"""A network that does not fit one rank trains on 2 and on 4: `python benchmarks/large_model.py`.

784-8192-8192-8192-10 in batches of 64, with a memory of 1,400 MB a rank (`--rank-memory`), or with an address space of
as much (`--limit address-space`, which counts what is reserved, too): refused on 1 rank, before anything is allocated;
by tensor slices and by stages it trains on 2 and on 4. The table has the memory of the largest rank beyond the program
(proportional set size at the end of the run), its share of that of one rank without a limit, and the forecast.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mpi_parallel.mpi.launcher import child_environment, mpirun_beside
from mpi_parallel.options.values import bytes_of

GRIDS = [(1, 1), (1, 2), (2, 1), (1, 4), (4, 1), (2, 2)]  # pipe x tensor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/fashion-mnist-small.h5")
    parser.add_argument("--hidden", default="8192 8192 8192")
    parser.add_argument("--batch-size", default="64")
    parser.add_argument("--memory", default="1400M", help="of a rank")
    parser.add_argument("--limit", default="rank-memory", choices=("rank-memory", "address-space"))
    parser.add_argument("--to", help="also write the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alone = run(options, (1, 1), Path(folder) / "alone", limited=False)
        refused = run(options, (1, 1), Path(folder) / "refused")
        if "error" not in refused:
            print(f"one rank was not refused with {options.memory}")
            return 1
        print(f"1 rank, {options.memory}: {refused['error']}\n")
        print("pipe x tensor  ranks  MiB a rank  of one rank's  1/N   forecast MiB  seconds of the run")
        table = {(1, 1): alone} | {
            grid: run(options, grid, Path(folder) / f"{grid[0]}-{grid[1]}") for grid in GRIDS[1:]
        }
    for grid, row in table.items():
        ranks = grid[0] * grid[1]
        if "error" in row:
            print(f"{grid[0]} x {grid[1]}: {row['error']}")
            continue
        share = row["mib"] / alone["mib"]
        print(
            f"{grid[0]:4} x {grid[1]:<6} {ranks:6} {row['mib']:11,.0f} {share:14.2f} {1 / ranks:5.2f} "
            f"{row['forecast']:13,.0f} {row['seconds']:19.1f}"
        )
    if options.to:
        figures = {f"pipe {pipe} x tensor {tensor}": row for (pipe, tensor), row in table.items()}
        told = {"date": time.strftime("%Y-%m-%d"), "options": vars(options), "refused": refused, "layouts": figures}
        Path(options.to).write_text(json.dumps(told, indent=1) + "\n")
    return int(any("error" in row for row in table.values()))


def run(options: argparse.Namespace, grid: tuple[int, int], out: Path, limited: bool = True) -> dict[str, Any]:
    """Memory and time of one step on this grid, or the error."""
    train = (
        f"{sys.executable} -m mpi_parallel.train --data {options.data} --hidden {options.hidden} --steps 1 --threads 1 "
        f"--batch-size {options.batch_size} --out {out} --progress none --no-report --checkpoint-every never "
        f"--pipe {grid[0]} --tensor {grid[1]}"
    )
    if limited and options.limit == "rank-memory":
        train += f" --rank-memory {options.memory}"
    elif limited:
        train = f"sh -c 'ulimit -v {bytes_of(options.memory) >> 10}; exec {train}'"
    command = shlex.split(f"{mpirun_beside()} -n {grid[0] * grid[1]} {train}")
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=900)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error: " in line] or done.stderr.splitlines()[-1:]
        return {"error": lines[0] if lines else f"status {done.returncode}", "status": done.returncode}
    start, *_, end = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    return {
        "mib": (max(end["memory"]) - start["memory_program"]) / 2**20,
        "forecast": start["memory_forecast"] / 2**20,
        "seconds": end["seconds"],
    }


if __name__ == "__main__":
    sys.exit(main())
