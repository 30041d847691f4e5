"""Tests under mpirun: which run, how they fail together, and who prints what.

    python -m pytest                    the serial tests, and the parallel ones for 1 rank
    mpirun -n 3 python -m pytest        the parallel tests for 3 ranks

A parallel test states its ranks: `@pytest.mark.parallel([1, 2, 3, 4])`, of mpi-pytest. It may use bare asserts: when it
fails on one rank it fails on all, and when the others wait for that rank in a message, the job is ended. A test that
hangs on all ranks is ended by its timeout. Either way each rank shows where it stood.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
import threadpoolctl
from _pytest.terminal import TerminalReporter
from mpi4py import MPI

PATIENCE = 5.0  # seconds that a failing rank waits for the others to end the same test


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    stderr = os.fdopen(os.dup(2), "w")  # the real one, whatever pytest captures later
    # Whoever is ended from outside shows where it stood, also from within a message.
    faulthandler.register(signal.SIGTERM, stderr, all_threads=False, chain=True)
    if MPI.COMM_WORLD.size > 1:
        config.pluginmanager.register(Ranks(config, stderr), "ranks")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests for this number of ranks, which mpi-pytest has marked before."""
    others = [item for item in items if not item.get_closest_marker("parallel[match]")]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item.get_closest_marker("parallel[match]")]


@pytest.fixture
def shared_path(tmp_path: Path) -> Path:
    """An empty folder, the same one on all ranks: that of rank 0."""
    return MPI.COMM_WORLD.bcast(tmp_path)


class Ranks:
    """The part of the plugin for more than one rank."""

    def __init__(self, config: pytest.Config, stderr: TextIO) -> None:
        self.comm = MPI.COMM_WORLD.Dup()  # its own: a test that fails midway leaves messages behind on the world
        self.neighbours = self.comm.Split_type(MPI.COMM_TYPE_SHARED).allgather(os.getpid())
        self.stderr = stderr
        self.timer: threading.Timer | None = None
        # Ranks that each thread over all cores get in each other's way.
        threadpoolctl.threadpool_limits(max(1, len(os.sched_getaffinity(0)) // self.comm.size))
        # Which tests to run must not depend on what failed last, as ranks may remember it differently.
        for name in ("lfplugin", "nfplugin", "stepwiseplugin"):
            config.pluginmanager.unregister(name=name)
        # Each rank has its own place for tmp_path: in a common one they would tidy up under each other's feet.
        self.folder = tempfile.mkdtemp(prefix=f"pytest-rank-{self.comm.rank}-")
        os.environ["PYTEST_DEBUG_TEMPROOT"] = self.folder
        # Rank 0 reports as always; the others say only what failed on them.
        if self.comm.rank:
            config.pluginmanager.unregister(name="terminalreporter")
            silent = TerminalReporter(config, open(os.devnull, "w"))  # noqa: SIM115
            config.pluginmanager.register(silent, "terminalreporter")

    def pytest_unconfigure(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    # Failing together

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        return (yield from self._together(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        return (yield from self._together(item))

    def _together(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Run a phase of a test, and fail it here too where it failed on another rank."""
        error, result, told = None, None, ""
        try:
            result = yield
        except (pytest.skip.Exception, pytest.xfail.Exception) as outcome:
            error = outcome
        except (Exception, pytest.fail.Exception) as failure:
            error = failure
            told = f"failed in {item.nodeid}\n{item.repr_failure(pytest.ExceptionInfo.from_exception(failure))}"
        failed = self._meet(told)
        if error is not None:
            raise error
        if failed:
            names = ", ".join(map(str, failed))
            pytest.fail(f"failed on rank{'s' if len(failed) > 1 else ''} {names} of {self.comm.size}", pytrace=False)
        return result

    def _meet(self, told: str) -> list[int]:
        """The ranks on which this phase failed, once all have ended it; a job in which some never do is ended."""
        flags = np.zeros(self.comm.size, np.int8)
        meeting = self.comm.Iallgather(np.array([bool(told)], np.int8), flags)
        deadline = time.monotonic() + PATIENCE
        if told and self.comm.rank:
            self._say(told)
        while not meeting.Test():
            if told and time.monotonic() > deadline:
                self._say((told if self.comm.rank == 0 else "") + "\nthe others wait in a message: ending the job")
                self._end_job()
            time.sleep(0.0005)
        return np.flatnonzero(flags).tolist()

    def _end_job(self) -> None:
        faulthandler.unregister(signal.SIGTERM)  # this rank has said all
        for pid in self.neighbours:
            if pid != os.getpid():
                os.kill(pid, signal.SIGTERM)  # which shows where it stands, as not every Abort does
        time.sleep(1)
        self.comm.Abort(1)

    # Deadlines

    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool:
        """In place of pytest-timeout's own, which writes to the report, and only rank 0 has one."""
        self.timer = threading.Timer(settings.timeout, self._expire, [item, settings.timeout, threading.get_ident()])
        self.timer.daemon = True
        self.timer.start()
        return True

    def pytest_timeout_cancel_timer(self, item: pytest.Item) -> bool:
        if self.timer:
            self.timer.cancel()
        return True

    def _expire(self, item: pytest.Item, seconds: float, thread: int) -> None:
        stack = traceback.extract_stack(sys._current_frames()[thread])
        ours = [frame for frame in stack if "/_pytest/" not in frame.filename and "/pluggy/" not in frame.filename]
        where = "".join(traceback.format_list(ours))
        self._say(f"{item.nodeid} did not end within {seconds:g} s\n{where}")
        faulthandler.unregister(signal.SIGTERM)
        time.sleep(1)  # as the first rank to go takes the others with it
        os._exit(1)

    # What only the reporter would have shown

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if self.comm.rank and report.failed:
            self._say(f"could not collect {report.nodeid}\n{report.longreprtext}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.comm.rank and report.failed and report.when == "teardown":
            self._say(f"failed in the teardown of {report.nodeid}\n{report.longreprtext}")

    def pytest_internalerror(self, excrepr: Any) -> None:
        self._say(str(excrepr))

    def _say(self, text: str) -> None:
        self.stderr.write(f"\n[rank {self.comm.rank} of {self.comm.size}] {text}\n")
        self.stderr.flush()
