"""Whether this MPI takes arrays in the memory of a GPU: tried by a process of its own, which may die of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

from mpi_parallel.mpi.launcher import child_environment

NO_GPU = 3  # exit status of the child
DEADLINE = 60  # seconds: the child loads CuPy and starts CUDA
COUNT = 4096  # numbers in a message


@dataclass(frozen=True)
class Awareness:
    """Whether MPI read and wrote a GPU's memory; None where there is no GPU to try it with."""

    aware: bool | None
    why: str


def probe() -> Awareness:
    """Let a child process send a message from a GPU's memory to a GPU's memory, and see what becomes of it."""
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Awareness(False, f"a message between arrays of a GPU did not end within {DEADLINE} s")
    if done.returncode == 0:
        return Awareness(True, "a message between arrays of a GPU arrived")
    last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
    if done.returncode == NO_GPU:
        return Awareness(None, f"not tried: {last}")
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    return Awareness(False, f"a message between arrays of a GPU ended the process that tried it ({how})")


def main() -> int:
    """What the child does: 0 when the numbers arrive, NO_GPU without a GPU; MPI may also end it in its own way."""
    from mpi_parallel.device import open_device
    from mpi_parallel.options import InputError

    try:
        device = open_device("cuda", 0)
    except InputError as error:
        print(error, file=sys.stderr)
        return NO_GPU
    from mpi4py import MPI  # starts MPI, for which there is no need before

    sent = device.xp.arange(COUNT, dtype="float32")
    received = device.xp.zeros_like(sent)
    device.synchronize()
    summed = device.xp.zeros_like(sent)
    MPI.COMM_SELF.Sendrecv(sent, 0, 0, received, 0, 0)
    MPI.COMM_SELF.Allreduce(sent, summed)
    device.synchronize()
    return int(not all((device.to_host(array) == device.to_host(sent)).all() for array in (received, summed)))


if __name__ == "__main__":
    sys.exit(main())
