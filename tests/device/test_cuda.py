"""A GPU that is emulated: graphs, memory, precisions, and mistakes."""

import gc
import sys

import numpy as np
import pytest

from mpi_parallel.device import cublaslt_library, cuda, open_device
from mpi_parallel.device.cuda import Cuda
from mpi_parallel.device.cuda_choice import explain, gpu_map
from mpi_parallel.options import InputError
from tests.device.emulated import OutOfMemoryError, installed, values
from tests.device.fake_lt import FakeLt
from tests.device.opened import opened
from tests.device.shim import compiler
from tests.device.streams import CUDARuntimeError
from tests.once import once

pytestmark = once


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> Cuda:
    """As it is opened, on an emulated GPU and on a real one."""
    if request.param == "emulated":
        installed(monkeypatch)
    return Cuda(0)


class TestGraphs:
    def test_their_times_are_told(self, device):
        a = device.to_device(np.zeros(4, np.float32))
        a.fill(1)  # which loads CuPy's kernel: nothing may be loaded while something is captured
        times = device.time([device.capture(lambda: a.fill(1))] * 2)
        assert len(times) == 2
        assert all(0 < seconds < 1 for seconds in times)

    def test_none_is_given_back_while_another_one_is_captured(self, device):
        """As garbage that is collected there: of steps of other shapes, say, whose graphs are not used any more."""
        a = device.to_device(np.zeros(4, np.float32))
        a.fill(1)

        def work() -> None:
            a.fill(1)
            garbage.clear()
            assert [[] for _ in range(5000)]  # more than Python makes before it looks for garbage

        garbage = [[device.capture(lambda: a.fill(1))]]
        garbage[0].append(garbage[0])  # which holds itself
        device.capture(work)()
        assert gc.isenabled()

    def test_a_replay_does_again_what_was_captured_and_nothing_before(self, gpu):
        a, total = gpu.to_device(np.arange(4, dtype=np.float32)), gpu.to_device(np.zeros(4, np.float32))
        here = gpu.pinned((4,), np.float32)

        def work() -> None:
            gpu.kernels.sum_slots(total, gpu.kernels.xp.asarray(np.zeros((1, 4), np.float32)) if warm else both)
            gpu.fetch(total, here)

        warm, both = True, gpu.to_device(np.ones((2, 4), np.float32))
        work()
        warm = False
        replay = gpu.capture(work)
        gpu.mark()()
        assert here.tolist() == [0] * 4
        gpu.put(np.full((2, 4), 3, np.float32), both)
        replay()
        gpu.synchronize()
        assert here.tolist() == [6] * 4
        assert values(a).tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("mistake", "told"),
        [
            (lambda gpu: gpu.xp.zeros(3, np.float32), "12 bytes|1 bytes are allocated while a step is captured"),
            (lambda gpu: gpu.to_host(gpu.kernels._ticket), "StreamCaptureUnsupported"),
            (lambda gpu: gpu.synchronize(), "StreamCaptureUnsupported"),
        ],
    )
    def test_what_a_replay_would_not_survive_is_refused_and_the_stream_goes_on(self, gpu, mistake, told):
        with pytest.raises(RuntimeError, match=told):
            gpu.capture(lambda: mistake(gpu))
        gpu.synchronize()
        mistake(gpu)

    @pytest.mark.parametrize("mistake", [lambda gpu: gpu.synchronize(), lambda gpu: not gpu.stream.is_capturing()])
    def test_what_cannot_be_captured_is_measured_to_take_for_ever(self, gpu, mistake):
        """As an algorithm that is refused there, so that it is not chosen for steps that are."""
        assert gpu._time_launches(lambda: mistake(gpu)) == float("inf")
        assert gpu._time_launches(lambda: gpu.kernels._ticket.fill(0)) < float("inf")


class TestMemory:
    def test_large_arrays_cross_over_in_parts(self, monkeypatch, device):
        monkeypatch.setattr(cuda, "SLAB", 100)
        for shape in [(7, 5), (1, 60), (200,), (0, 4), (3, 2, 30)]:
            array = np.random.default_rng(1).integers(0, 99, shape).astype(np.float32)
            copy = device.to_device(array)
            np.testing.assert_array_equal(device.to_host(copy), array)
            copy.fill(0)
            assert not shape[0] or array.any()

    def test_they_pass_through_no_more_page_locked_memory_than_a_part(self, monkeypatch):
        device = opened(monkeypatch, installed(monkeypatch))
        monkeypatch.setattr(cuda, "SLAB", 100)
        device.xp.events.clear()
        device.to_device(np.zeros((50, 5), np.float32))
        sizes = [event[1] for event in device.xp.events if event[0] == "allocate"]
        assert sizes == [1000, *[100] * 10]

    def test_pinned_memory_comes_with_zeros_and_crosses_both_ways(self, gpu):
        for shape in ((), (0,), (3, 5)):
            here = gpu.pinned(shape, np.int64)
            assert (here.shape, here.any()) == (shape, False)
            here[...] = 7
            there = gpu.to_device(np.zeros(shape, np.int64))
            gpu.put(here, there)
            back = gpu.pinned(shape, np.int64)
            gpu.fetch(there, back)
            gpu.synchronize()
            np.testing.assert_array_equal(back, here)

    @pytest.mark.parametrize("late", [False, True])
    def test_rows_land_in_turn_in_memory_that_is_used_again(self, monkeypatch, late):
        """Behind the work that looks at what they overwrite, and by way of memory that they have left before."""
        gpu = opened(monkeypatch, installed(monkeypatch, late=late))
        images, labels = np.arange(80, dtype=np.uint8).reshape(20, 4), np.arange(20, dtype=np.int32)
        landing, seen, found = gpu.landing(3, 4, np.dtype(np.uint8)), [], []
        gpu.xp.events.clear()
        for chosen in ([9, 0], [1], [], [2, 3, 4], [5, 6], [7, 8, 19], [10], [11, 12, 13], [14, 15], [16, 17, 18]):
            first, chosen = landing.landed, np.array(chosen, np.int64)
            halves = chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]
            landing.bring(len(chosen), [(images, labels, half) for half in halves])
            places = np.arange(first, landing.landed) % landing.room
            look = lambda places=places: found.append((values(landing.images)[places], values(landing.labels)[places]))  # noqa: E731
            gpu.xp.do(("launch", "look"), look)
            seen.append(chosen)
        assert not [event for event in gpu.xp.events if event[0] == "allocate"]
        gpu.synchronize()
        for (rows, numbers), chosen in zip(found, seen, strict=True):
            np.testing.assert_array_equal(rows, images[chosen])
            np.testing.assert_array_equal(numbers, chosen)

    def test_nothing_lands_of_no_columns(self, gpu):
        landing = gpu.landing(2, 0, np.dtype(np.uint8))
        landing.bring(2, [(np.zeros((5, 0), np.uint8), np.arange(5, dtype=np.int32), np.array([3, 1]))])
        gpu.synchronize()
        assert (values(landing.labels)[:2].tolist(), landing.images.shape) == ([3, 1], (6, 0))


class TestPrecisions:
    @pytest.mark.parametrize(
        ("precision", "dtype", "tf32"),
        [
            ("float32", "float32", False),
            ("tf32", "float32", True),
            ("float16", "float16", False),
            ("bfloat16", "uint16", False),
        ],
    )
    def test_operands_are_stored_as_the_products_want_them(self, monkeypatch, precision, dtype, tf32):
        device = opened(monkeypatch, installed(monkeypatch), precision=precision)
        assert np.dtype(device.storage(precision)).name == dtype
        assert device.kernels.lt.tf32 == tf32

    def test_reproducible_runs_do_not_measure(self, monkeypatch):
        assert opened(monkeypatch, installed(monkeypatch), measure=False).kernels.lt.time is None
        assert opened(monkeypatch, installed(monkeypatch)).kernels.lt.time is not None


class TestWhoHasWhich:
    def test_a_map_for_people(self):
        lines, complaints = gpu_map(["n1", "n1", "n2", "n2"], ["A", "B", "A", "A"])
        assert lines == ["rank 0: A on n1", "rank 1: B on n1", "ranks 2, 3: A on n2"]
        assert len(complaints) == 1
        assert complaints[0].startswith("ranks 2, 3 share one GPU, A on n2")

    def test_parts_of_one_gpu_have_names_of_their_own(self, monkeypatch):
        cupy = installed(monkeypatch, gpus=2)
        cupy.cuda.runtime.deviceGetPCIBusId = lambda number: "0000:17:00.0"
        cupy.cuda.runtime.getDeviceProperties = lambda number: {"name": b"H100", "uuid": bytes([number + 1] * 16)}
        compiler()
        monkeypatch.setattr(cuda, "load", lambda find, major: FakeLt(cupy.do))
        assert len({open_device("cuda", rank).place for rank in range(2)}) == 2


class TestMistakes:
    def test_too_little_memory_is_told_with_what_was_asked_and_what_is_free(self, monkeypatch):
        device = opened(monkeypatch, installed(monkeypatch, memory=64 << 20))
        with pytest.raises(OutOfMemoryError) as caught:
            device.empty_bytes(65 << 20)
        told = explain(caught.value)
        assert isinstance(told, InputError)
        assert "68,157,440 bytes; 0.1 of 0.1 GiB are free" in str(told)
        assert "--micro-batch" in str(told)

    def test_too_little_memory_of_the_host_is_not_told_as_the_gpus(self, monkeypatch):
        device = opened(monkeypatch, installed(monkeypatch))
        device.xp.lockable = 1000
        for ask in (lambda: device.pinned((1001,), np.uint8), lambda: device.register(np.zeros(1001, np.uint8))):
            with pytest.raises(InputError, match=r"1,001 bytes of .* cannot be page-locked .* fewer ranks a node"):
                ask()

    def test_a_driver_that_cannot_run_the_kernels_is_told_as_too_old(self, monkeypatch):
        opened(monkeypatch, installed(monkeypatch))
        told = explain(CUDARuntimeError("cudaErrorUnsupportedPtxVersion: the provided PTX was compiled with a newer"))
        assert isinstance(told, InputError)
        assert "driver is too old for this CuPy" in str(told)

    def test_a_product_that_fails_is_a_gpu_that_fails(self, monkeypatch):
        opened(monkeypatch, installed(monkeypatch))
        assert "--resume auto" in explain(cublaslt_library.LtError("cublasLtMatmulDescCreate answers with status 14"))

    def test_a_gpu_that_fails_is_told_with_what_to_do(self, monkeypatch):
        opened(monkeypatch, installed(monkeypatch))
        told = explain(CUDARuntimeError("cudaErrorECCUncorrectable: uncorrectable ECC error encountered"))
        assert isinstance(told, str)
        assert "cudaErrorECCUncorrectable" in told
        assert "--resume auto" in told

    def test_other_exceptions_are_left_alone(self, monkeypatch):
        opened(monkeypatch, installed(monkeypatch))
        assert explain(ValueError("x")) is None
        monkeypatch.delitem(sys.modules, "cupy")
        assert explain(CUDARuntimeError("x")) is None

    def test_tells_itself(self, gpu):
        assert gpu.describe().startswith(
            "cuda, GPU 0 of 1: Emulated GPU, CuPy 14.2.0, CUDA 12.9; CUDA kernels, products by "
        )
