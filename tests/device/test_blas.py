"""NumPy's BLAS is told from those that other packages bring into the process."""

from __future__ import annotations

import subprocess
import sys

import threadpoolctl

from mpi_parallel.device.blas import blas_pool

OTHER = {"user_api": "blas", "internal_api": "openblas", "version": "0", "filepath": "/elsewhere/libopenblas.so"}


def test_numpys_is_told_whatever_comes_first(monkeypatch):
    ours = blas_pool()
    pools = threadpoolctl.threadpool_info()
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: [OTHER, *pools])
    assert blas_pool() == ours != OTHER


def test_scipys_coming_in_later_changes_nothing():
    script = (
        "from mpi_parallel.device.blas import blas_pool\n"
        "before = blas_pool()\n"
        "import scipy.linalg\n"
        "assert before and blas_pool()['filepath'] == before['filepath'], (before, blas_pool())\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_without_any_there_is_none(monkeypatch):
    monkeypatch.setattr(threadpoolctl, "threadpool_info", list)
    assert blas_pool() is None
