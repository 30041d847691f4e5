"""What a GPU may do in any order, cuda_races.h sees: threads that touch the same memory without order.

On a CPU, where they take turns, they would do so without harm.
"""

import os
import subprocess
import sys

import pytest

from mpi_parallel.device.cuda_kernels import source
from tests.device import shim
from tests.device.shim import RACES, TESTS, compiler
from tests.once import once

pytestmark = once
FEW = "not backward and not (130 or 784 or 500 or same_launch or shared_memory or hundred)"  # every read is looked at


def watched(*command: str, **more: str) -> subprocess.CompletedProcess:
    """In a process of its own, which a race ends."""
    environment = {**os.environ, RACES: "1", **more}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=200)


def test_there_are_none_in_the_kernels():
    child = watched("-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", "-k", FEW, *TESTS)
    assert child.returncode == 0, child.stdout[-3000:] + child.stderr[-3000:]


@pytest.mark.parametrize(
    ("right", "wrong", "tests"),
    [
        ("    if (last) __threadfence();", "", "cross_entropy"),
        ("    __threadfence();\n    __syncthreads();", "    __syncthreads();", "cross_entropy"),
        ("    T sum = shared[0];\n    __syncthreads();", "    T sum = shared[0];", "cross_entropy"),
        ("if (threadIdx.x == 0) parts[blockIdx.x] = sum;", "if (threadIdx.x == 0) parts[0] = sum;", "squares"),
        ("    __syncthreads();\n    if (threadIdx.x == 0) *cursor", "    if (threadIdx.x == 0) *cursor", "deal"),
        ("        __syncthreads(); /* all are through with what was there */", "", "many_rows and 500"),
        ("    if ((int)threadIdx.x < outs) to[threadIdx.x] = bias;", "", "gradients"),
        ("if (!last_block(ticket, count)) return false;", "if (share) return false;", "gradients and 130"),
    ],
)
def test_one_ends_the_program(tmp_path, monkeypatch, right, wrong, tests):
    code = source()
    assert code.count(right) == 1
    monkeypatch.setattr(shim, "source", lambda: code.replace(right, wrong))
    compiler()
    built = {shim.BUILT: str(shim.build(tmp_path, ("-O0", *shim.WATCHED[1:])))}
    chosen = f"in and order and not backward and not hundred and not 784 and {tests}"
    child = watched("-m", "pytest", "-xsq", "-p", "no:cacheprovider", "-k", chosen, *TESTS, **built)
    assert child.returncode != 0
    assert "without order" in child.stderr or "that nobody wrote" in child.stderr
