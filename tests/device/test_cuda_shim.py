"""The shim that runs CUDA kernels on a CPU: it ends what a GPU would not run, and AddressSanitizer looks on.

So does cuda_races.h, which tells of threads that touch the same memory without order: on a CPU, where they take turns,
they would do so without harm.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpi_parallel.device.cuda_kernels import source
from tests.device import shim
from tests.device.shim import RACES, SANITIZE, compiler
from tests.lacking import lacking
from tests.once import once

KERNELS = [str(Path(__file__).with_name(name)) for name in ("test_cuda_kernels.py", "test_cuda_small.py")]

FEW = "not backward and not (130 or 784 or 500 or same_launch or shared_memory or hundred)"  # every read is looked at
SOME = (
    "not backward and not (784 and (130 or 37))"  # of the tests: what takes long there shows nothing that others do not
)


def test_the_shim_ends_a_program_whose_threads_part_at_a_barrier(tmp_path):
    code = (
        f'#include "{Path(__file__).parent / "cuda_shim.h"}"\n'
        "static void part(int *at) { if (threadIdx.x) __syncthreads(); *at = 1; }\n"
        'static const Entry table[] = {{"part", letters(part), [](void **g) { unpack(part, g); }}};\n'
        "static const Entry *find(const char *) { return table; }\n"
        "int main() { unsigned one[3] = {1, 1, 1}, two[3] = {2, 1, 1}; int at = 0, *to = &at; void *g[] = {&to};\n"
        'launch("part", one, one, 0, g); fprintf(stderr, "%d.", at); launch("part", one, two, 0, g); }\n'
    )
    (tmp_path / "part.cpp").write_text(code)
    command = [compiler(), "-std=c++14", "-Wno-unused", tmp_path / "part.cpp", "-o", tmp_path / "part"]
    subprocess.run(command, check=True, env={**os.environ, "LD_PRELOAD": ""})
    ended = subprocess.run([tmp_path / "part"], capture_output=True, text=True)
    assert ended.returncode != 0
    assert ended.stderr.endswith("1.part: 1 of 2 threads came to a barrier\n")


@once
class TestUnderAddressSanitizer:
    """In child processes, as the sanitizer has to be loaded before Python is."""

    def test_all_of_the_kernels_tests_hold(self):
        command = ["-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", "-k", SOME, *KERNELS]
        child = self.child(*command)
        assert child.returncode == 0, child.stdout[-3000:] + child.stderr[-3000:]

    def test_which_sees_a_write_behind_an_array(self):
        code = (
            "from tests.device import test_cuda_kernels as t; import numpy as np\n"
            "kernels = t.CudaKernels(t.emulated())\n"
            "kernels.sum_slots(t.on(np.ones(2, 'f4')), t.on(np.ones((2, 2), 'f4')))\n"
            "bad, count = t.on(np.ones(1, 'f4')), (np.uint64(0), np.float32(0))\n"
            "kernels._each('check', 300, t.on(np.full(300, np.nan, 'f4')), np.int64(301), bad, *count)\n"
        )
        child = self.child("-c", code)
        assert child.returncode != 0
        assert "AddressSanitizer: heap-buffer-overflow" in child.stderr

    @staticmethod
    def child(*command: str) -> subprocess.CompletedProcess:
        asked = subprocess.run([compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
        if not Path(asked.stdout.strip()).is_absolute():
            lacking("the C++ compiler has no AddressSanitizer")
        environment = {
            **os.environ,
            "LD_PRELOAD": asked.stdout.strip(),
            SANITIZE: "1",
            "ASAN_OPTIONS": "detect_leaks=0",
        }
        command = [sys.executable, *command]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def watched(*command: str, **more: str) -> subprocess.CompletedProcess:
    """In a process of its own, which a race ends."""
    environment = {**os.environ, RACES: "1", **more}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=200)


@once
class TestRaces:
    """What a GPU may do in any order."""

    def test_there_are_none_in_the_kernels(self):
        child = watched("-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", "-k", FEW, *KERNELS)
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
            ("    if (threadIdx.x < outs) to[threadIdx.x] = bias;", "", "gradients"),
            ("if (!last_block(ticket, count)) return false;", "if (share) return false;", "gradients and 130"),
        ],
    )
    def test_one_ends_the_program(self, tmp_path, monkeypatch, right, wrong, tests):
        code = source()
        assert code.count(right) == 1
        monkeypatch.setattr(shim, "source", lambda: code.replace(right, wrong))
        compiler()
        built = {shim.BUILT: str(shim.build(tmp_path, shim.WATCHED))}
        chosen = f"in and order and not backward and not hundred and not 784 and {tests}"
        child = watched("-m", "pytest", "-xsq", "-p", "no:cacheprovider", "-k", chosen, *KERNELS, **built)
        assert child.returncode != 0
        assert "without order" in child.stderr or "that nobody wrote" in child.stderr
