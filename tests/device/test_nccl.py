"""NCCL as CuPy 13 and 14 have it: who has none, and how the ranks find each other. Real sums: test_accelerator.py."""

import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest

from mpi_parallel.device import nccl
from tests.once import once

pytestmark = once

IDENTITY = bytes(range(100, 228))


@pytest.fixture
def cupy(monkeypatch):
    """Puts such a CuPy in the place of the real one."""

    def plug_in(version, **facts):
        module = ModuleType("cupy.cuda.nccl")
        for name, value in facts.items():
            setattr(module, name, value)
        parent = ModuleType("cupy.cuda")
        parent.nccl = module
        whole = SimpleNamespace(__version__=version, cuda=parent)
        for name, part in (("cupy", whole), ("cupy.cuda", parent), ("cupy.cuda.nccl", module)):
            monkeypatch.setitem(sys.modules, name, part)
        return whole

    return plug_in


def test_without_the_library_of_cupy_14(cupy):
    cupy("14.2.0", available=False)
    assert "install nvidia-nccl-cu12" in nccl.complaint()


def test_without_the_module(cupy, monkeypatch):
    cupy("13.6.0")
    monkeypatch.delitem(sys.modules, "cupy.cuda.nccl")
    monkeypatch.delattr(sys.modules["cupy.cuda"], "nccl")
    assert "CuPy has no NCCL (" in nccl.complaint()


def test_with_it(cupy):
    cupy("13.6.0", get_version=lambda: 22703)
    assert nccl.complaint() is None
    cupy("14.2.0", get_version=lambda: 22703, available=True)
    assert nccl.complaint() is None


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("version", "chars"), [("13.6.0", True), ("14.2.0", False), ("15.0.0rc1", False)])
def test_ranks_find_each_other_by_what_the_first_one_says(cupy, version, chars, rank):
    signed = tuple(byte - 256 if byte > 127 else byte for byte in IDENTITY)
    given, said = [], []
    module = cupy(
        version, get_unique_id=lambda: signed if chars else IDENTITY, NCCL_FLOAT32=7, NCCL_FLOAT64=8, NCCL_SUM=0,
        NcclCommunicator=lambda size, identity, rank: given.append((size, identity, rank)),
    )  # fmt: skip

    def agree(mine):
        said.append(mine)
        return IDENTITY

    nccl.Nccl(module, 2, rank, agree)
    assert given == [(2, signed if chars else IDENTITY, rank)]
    assert said == [IDENTITY if rank == 0 else bytes(128)]


def test_the_communicator_is_given_back_when_its_work_is_done(cupy):
    done = []
    stream = SimpleNamespace(synchronize=lambda: done.append("synchronize"))
    communicator = SimpleNamespace(destroy=lambda: done.append("destroy"))
    module = cupy(
        "14.2.0", get_unique_id=lambda: IDENTITY, NCCL_FLOAT32=7, NCCL_FLOAT64=8, NCCL_SUM=0,
        NcclCommunicator=lambda *_: communicator,
    )  # fmt: skip
    module.cuda.get_current_stream = lambda: stream
    nccl.Nccl(module, 1, 0, lambda mine: mine).close()
    assert done == ["synchronize", "destroy"]


def test_a_warning_of_cupy_is_no_failure(monkeypatch):
    """CuPy 14 warns at the import where it does not find the library."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nccl.complaint()
