"""The host's device, and how many threads a rank gets."""

import os
import subprocess
import sys

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

from mpi_parallel.device import Host, host
from mpi_parallel.device.blas import blas_pool
from mpi_parallel.device.host import blas, fair_threads, set_threads, usable_cores

CORES = st.frozensets(st.integers(0, 12), min_size=1)


class TestHost:
    def test_arrays_do_not_move(self):
        array, host = np.ones(3), Host()
        assert host.to_device(array) is array
        assert host.to_host(array) is array
        host.refill(array, array)
        host.synchronize()
        assert array.tolist() == [1, 1, 1]

    def test_refilling_from_elsewhere_is_a_mistake(self):
        with pytest.raises(AssertionError):
            Host().refill(np.ones(3), np.ones(3))

    def test_describes_the_blas_with_its_kernels_and_threads(self):
        assert Host().describe() == f"cpu, {blas()}; {Host().kernels.name}"
        with threadpoolctl.threadpool_limits(1):
            assert blas().endswith(", 1 thread")
        assert blas_pool()["internal_api"] in blas()
        assert blas_pool()["version"] in blas()

    def test_set_threads_reaches_blas(self):
        with threadpoolctl.threadpool_limits(None):  # restores what was
            for count in (1, 2):
                set_threads(count)
                assert {pool["num_threads"] for pool in threadpoolctl.threadpool_info()} == {count}


class TestUsableCores:
    def test_are_those_that_the_launcher_allows(self):
        one = min(os.sched_getaffinity(0))
        code = (
            f"import os; os.sched_setaffinity(0, [{one}]);"
            "from mpi_parallel.device.host import usable_cores; print(sorted(usable_cores()))"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert told.strip() == f"[{one}]"
        assert usable_cores() == os.sched_getaffinity(0)


class TestFairThreads:
    @pytest.mark.parametrize(
        ("mine", "others", "threads"),
        [
            (range(8), [], 8),  # alone
            (range(8), [range(8)] * 3, 2),  # four ranks, none bound
            (range(8), [range(8)] * 2, 2),  # three: one core of each share is left over
            (range(4), [range(4, 8)], 4),  # each bound to its own half
            (range(1), [range(1)] * 5, 1),  # more ranks than cores
            (range(8), [range(4, 8)], 6),  # four cores of one's own, four shared by two
            (range(4, 8), [range(8)], 2),
        ],
    )
    def test_shares(self, mine, others, threads):
        mine = frozenset(mine)
        assert fair_threads(mine, [mine, *map(frozenset, others)]) == threads

    def test_thirds_are_not_lost_to_rounding(self):
        """Three ranks on three cores: 1/3 + 1/3 + 1/3 is a thread each."""
        for n in range(1, 50):
            assert fair_threads(frozenset(range(n)), [frozenset(range(n))] * n) == 1
            assert fair_threads(frozenset(range(2 * n)), [frozenset(range(2 * n))] * n) == 2

    @given(st.lists(CORES, min_size=1, max_size=8))
    def test_all_get_a_thread_and_together_no_more_than_cores_or_ranks(self, on_node):
        threads = [fair_threads(mine, on_node) for mine in on_node]
        assert min(threads) >= 1
        assert all(count <= len(mine) for count, mine in zip(threads, on_node, strict=True))
        granted = sum(count for count in threads if count > 1)
        assert granted <= len(frozenset().union(*on_node))


class TestBlasComplaint:
    @pytest.mark.parametrize(
        ("kernels", "flags", "complains"),
        [
            ("Haswell", {"avx2", "avx512f"}, True),
            ("Zen", {"avx2", "avx512f"}, True),
            ("Haswell", {"avx2"}, False),
            ("Nehalem", {"avx2"}, True),
            ("SkylakeX", {"avx2", "avx512f"}, False),
            ("Cooperlake", {"avx2", "avx512f"}, False),
            ("Nehalem", set(), False),
        ],
    )
    def test_kernels_below_the_cpu_are_told(self, monkeypatch, kernels, flags, complains):
        monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: [{"user_api": "blas", "architecture": kernels}])
        monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
        complaint = host.blas_complaint(frozenset(flags))
        assert (complaint is not None) == complains
        if complaint:
            assert kernels in complaint
            assert "unset" in complaint

    def test_a_blas_that_is_not_known_is_not_complained_of(self, monkeypatch):
        monkeypatch.setattr(threadpoolctl, "threadpool_info", list)
        assert host.blas_complaint(frozenset({"avx512f"})) is None

    def test_the_flags_are_those_of_the_cpu(self, tmp_path):
        (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2\nflags\t\t: sse\n")
        assert host.cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx2"}
        assert host.cpu_flags(tmp_path / "none") == frozenset()
