"""The shim that runs CUDA kernels on a CPU: it ends what a GPU would not run, and AddressSanitizer looks on."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device.shim import BUILT, SANITIZE, SANITIZED, TESTS, build, compiler
from tests.lacking import lacking
from tests.once import once

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


@pytest.fixture(scope="module")
def child(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """Run Python in a process of its own, as the sanitizer has to be loaded before Python is."""
    asked = subprocess.run([compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
    if not Path(asked.stdout.strip()).is_absolute():
        lacking("the C++ compiler has no AddressSanitizer")
    built = str(build(tmp_path_factory.mktemp("sanitized"), SANITIZED))
    asan = {"LD_PRELOAD": asked.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    environment = {**os.environ, **asan, SANITIZE: "1", BUILT: built}

    def child(*command: str) -> subprocess.CompletedProcess:
        command = (sys.executable, *command)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)

    return child


@once
class TestUnderAddressSanitizer:
    def test_all_of_the_kernels_tests_hold(self, child):
        command = ["-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", "-k", SOME, *TESTS]
        child = child(*command)
        assert child.returncode == 0, child.stdout[-3000:] + child.stderr[-3000:]

    def test_which_sees_a_write_behind_an_array(self, child):
        code = (
            "from tests.device import test_cuda_kernels as t; import numpy as np\n"
            "kernels = t.CudaKernels(t.emulated())\n"
            "kernels.sum_slots(t.on(np.ones(2, 'f4')), t.on(np.ones((2, 2), 'f4')))\n"
            "bad, count = t.on(np.ones(1, 'f4')), (np.uint64(0), np.float32(0))\n"
            "kernels._each('check', 300, t.on(np.full(300, np.nan, 'f4')), np.int64(301), bad, *count)\n"
        )
        child = child("-c", code)
        assert child.returncode != 0
        assert "AddressSanitizer: heap-buffer-overflow" in child.stderr
