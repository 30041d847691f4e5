"""The whole GPU path on an emulated GPU: its own kernels and calls of cublasLt, streams, graphs, memory, mistakes."""

import gc
import sys

import numpy as np
import pytest

from mpi_parallel.config.learning import OptimizerOptions
from mpi_parallel.data_parallel.memory import Budget
from mpi_parallel.device import Host, cublaslt_library, cuda, open_device
from mpi_parallel.device.cuda import Cuda
from mpi_parallel.device.cuda_choice import explain, gpu_map
from mpi_parallel.device.interface import BEGUN
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.options import InputError
from mpi_parallel.training.captured import NOT_CAPTURED
from tests.device.emulated import CUDARuntimeError, Emulated, OutOfMemoryError, installed, values
from tests.device.fake_lt import FakeLt
from tests.device.shim import compiler
from tests.device.test_devices import ALONE, Training, compare
from tests.samples import write_image_set
from tests.training.test_captured import BASE, STEPS, taken_by, told_by_the_host


@pytest.fixture(params=["cublasLt", "CuPy"])
def gpu(request, monkeypatch) -> Cuda:
    """A GPU with the library of products, and one without."""
    return opened(monkeypatch, installed(monkeypatch), lt=request.param == "cublasLt")


def opened(
    monkeypatch, cupy: Emulated, lt: bool = True, refused: tuple[int, ...] = (), times: tuple[float, ...] = (), **how
) -> Cuda:
    """`times` are what captured work is found to take; where there are none, nothing is tried."""
    compiler()

    def load(find, major: int) -> FakeLt:
        if not lt:
            raise OSError("no such library")
        return FakeLt(cupy.do, refused)

    monkeypatch.setattr(cuda, "load", load)
    device = Cuda(0, **how)
    device.measures, device.time = bool(times), lambda replays: list(times)
    return device


def of_steps(cupy: Emulated) -> list[list[tuple]]:
    """The graphs that steps are, without those by which products are measured."""
    return [graph for graph in cupy.recorded if ("launch", "deal") in graph]


def steps_begun(steps) -> int:
    return int(values(steps.pace)[BEGUN])


class TestTraining:
    @pytest.mark.parametrize("micro_batch", [None, 6])
    @pytest.mark.parametrize("rule", RULES)
    def test_steps_agree_with_the_host(self, gpu, rule, micro_batch):
        ours, theirs = Training(gpu, ALONE, rule, micro_batch), Training(Host(), ALONE, rule, micro_batch)
        compare(ours, theirs, steps=6, tolerance=2e-3)

    def test_a_step_that_repeats_allocates_nothing_but_its_batch(self, monkeypatch):
        device = opened(monkeypatch, installed(monkeypatch))
        training = Training(device, ALONE)
        training.steps(3)
        device.xp.events.clear()
        training.step(4)
        events = device.xp.events
        assert len([event for event in events if event[0] == "wait"]) == 3  # for the norm, and twice for the tail
        allocated = [size for kind, *rest in events if kind == "allocate" for size in rest]
        assert allocated[:2] == [20 * 8, 20 * 4]  # the batch's index and keys
        assert sum(allocated[2:]) < 100  # numbers that the host asks for
        launched = [event[1] for event in events if event[0] == "launch"]
        assert launched.count("cublasLtMatmul") == 8
        assert {"gather_u8_f32", "cross_entropy_of_few", "adam"} <= set(launched)


class TestReplayedSteps:
    """The steps of training/captured.py, by the real kernels in a graph."""

    @pytest.mark.parametrize(
        ("precision", "tolerance"), [("float32", 1e-4), ("tf32", 1e-2), ("bfloat16", 3e-2), ("float16", 5e-3)]
    )
    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    @pytest.mark.parametrize("where", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
    def test_agree_with_the_host_in_every_precision(self, monkeypatch, tmp_path, precision, tolerance, dropout, where):
        path = write_image_set(tmp_path / "set.h5", train=61)
        settings = {**BASE, "optimizer": "adam", "precision": precision, "dropout": dropout}
        rule = OptimizerOptions(lr=0.01, schedule="cosine", warmup=3, clip_norm=0.3)
        other, expected = told_by_the_host(path, settings, rule)
        if where == "gpu":
            device = Cuda(0, precision=precision)
        else:
            device = opened(monkeypatch, installed(monkeypatch), precision=precision)
        run, steps, totals = taken_by(device, path, settings, rule)
        assert steps.replays
        for ours, theirs in zip(totals, expected, strict=True):
            assert (ours.count, ours.finite, ours.stop) == (theirs.count, theirs.finite, theirs.stop)
            assert ours.loss == pytest.approx(theirs.loss, rel=tolerance)
        apart = [np.abs(w - v).max() for w, v in zip(run.whole(), other.whole(), strict=True)]
        assert max(apart) < tolerance * 2
        assert run.model.store.loss_scale.state() == other.model.store.loss_scale.state()
        if where == "emulated":
            assert len([event for event in device.xp.events if event[0] == "replay"]) == 11

    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    @pytest.mark.parametrize("where", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
    def test_agree_with_the_host_where_a_pass_is_at_once(self, monkeypatch, tmp_path, dropout, where):
        """By kernels/small.cu, also with graphs of several shapes."""
        path = write_image_set(tmp_path / "set.h5", train=61)
        settings = {**BASE, "optimizer": "adam", "dropout": dropout}
        rule = OptimizerOptions(lr=0.01, clip_norm=0.3)
        other, expected = told_by_the_host(path, settings, rule)
        if where == "gpu":
            device = Cuda(0)
            device.time = lambda replays: [2.0, 1.0]
        else:
            device = opened(monkeypatch, installed(monkeypatch), times=(2.0, 1.0))
        run, steps, totals = taken_by(device, path, settings, rule)
        assert steps.replays
        assert {shape.at_once for shape in steps._shapes.values()} == {True}
        assert [t.loss for t in totals] == pytest.approx([t.loss for t in expected], rel=1e-4)
        np.testing.assert_allclose(run.whole(), other.whole(), rtol=1e-3, atol=2e-4)
        if where == "emulated":
            front = device.xp.recorded[-1][:5]
            launched = ["deal", "gather_u8_f32", "small_first_32", "small_rows_2", "small_weights_32"]
            assert front == [("launch", name) for name in launched]

    @pytest.mark.parametrize("rule", RULES)
    def test_have_the_bits_of_steps_that_are_not_replayed(self, monkeypatch, tmp_path, rule):
        path, weights = write_image_set(tmp_path / "set.h5", train=61), []
        for graphs in (True, False):
            device = opened(monkeypatch, installed(monkeypatch), precision="bfloat16")
            settings = {**BASE, "optimizer": rule, "precision": "bfloat16"}
            run, _, _ = taken_by(device, path, settings, OptimizerOptions(lr=0.01), graphs)
            weights.append(run.weights())
        np.testing.assert_array_equal(*weights)

    @pytest.mark.parametrize("merge", ["streaming", "exact", "sharded"])
    @pytest.mark.parametrize("where", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
    def test_of_rows_that_stream_and_of_groups_are_those_that_are_not_replayed(
        self, monkeypatch, tmp_path, merge, where
    ):
        path = write_image_set(tmp_path / "set.h5", train=61)
        settings = {**BASE, "optimizer": "adam", "dropout": 0.3, "shards": 16}
        settings |= {"budget": Budget(holding=merge)} if merge == "streaming" else {"groups": 4, "merge": merge}
        rule = OptimizerOptions(lr=0.01, clip_norm=0.3)
        _, expected = told_by_the_host(path, settings, rule)
        weights = []
        for graphs in (True, False):
            if where == "gpu":
                device = Cuda(0, measure=False)
            else:
                device = opened(monkeypatch, installed(monkeypatch, late=graphs), measure=False)
            run, steps, totals = taken_by(device, path, settings, rule, graphs)
            assert steps.replays == graphs
            assert [ours.loss for ours in totals] == pytest.approx([theirs.loss for theirs in expected], rel=1e-3)
            weights.append(run.weights())
            run.training.rows.close()
        np.testing.assert_array_equal(*weights)

    def test_keep_their_memory_when_an_evaluation_needs_more(self, monkeypatch, tmp_path):
        """The emulated GPU refuses a graph whose memory nobody keeps; a real one would write to what others have."""
        path = write_image_set(tmp_path / "set.h5", train=61)
        device = opened(monkeypatch, installed(monkeypatch))
        run, steps, _ = taken_by(device, path, BASE, OptimizerOptions(lr=0.01))
        run.score(run.training.rows)  # 61 rows, and a batch has 14
        totals = [steps(batch, STEPS + n) for n, batch in enumerate(run.training.epoch(3, run.batch_size))]
        assert all(told.finite for told in totals)
        assert steps.replays

    @pytest.mark.parametrize("missing", [("library",), ("BIAS", "PLAIN"), ("BGRADA", "PLAIN")], ids=str)
    def test_are_taken_call_by_call_where_cupy_has_to_multiply(self, monkeypatch, tmp_path, caplog, missing):
        """A library that is not there, and one that lacks a product: cuBLAS is refused while a graph is captured."""
        path, rule = write_image_set(tmp_path / "set.h5", train=61), OptimizerOptions(lr=0.01)
        settings = {**BASE, "optimizer": "adam"}
        other, expected = told_by_the_host(path, settings, rule)
        refused = tuple(getattr(cublaslt_library, name) for name in missing if name != "library")
        device = opened(monkeypatch, installed(monkeypatch), "library" not in missing, refused)
        with caplog.at_level("INFO", logger="mpi_parallel"):
            run, steps, totals = taken_by(device, path, settings, rule)
        assert [ours.loss for ours in totals] == pytest.approx([theirs.loss for theirs in expected], rel=1e-4)
        np.testing.assert_allclose(run.whole(), other.whole(), atol=2e-4)
        assert not steps.replays
        assert of_steps(device.xp) == []
        assert [line for line in caplog.messages if "no CUDA graphs" in line] == [NOT_CAPTURED]

    @pytest.mark.parametrize("rule", ["sgd", "momentum", "adam", "adamw", "lamb"])
    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    def test_weights_are_rounded_by_the_kernel_that_updates_them(self, monkeypatch, tmp_path, rule, precision):
        """Not in a pass of its own; and once more where somebody else may have changed them."""
        path = write_image_set(tmp_path / "set.h5", train=61)
        device = opened(monkeypatch, installed(monkeypatch), precision=precision)
        run, steps, _ = taken_by(device, path, {**BASE, "optimizer": rule, "precision": precision}, OptimizerOptions())
        narrow = ("launch", "narrow_bf16" if precision == "bfloat16" else "narrow_f16")
        of_weights = rule == "lamb"
        assert [graph.count(narrow) for graph in of_steps(device.xp)] == [1 + of_weights] * len(of_steps(device.xp))

        store = run.model.store
        rounded = device.xp.zeros(store.size, device.storage(precision))
        for _ in range(2):
            device.kernels.narrow(store.weights, rounded, precision)
            np.testing.assert_array_equal(values(store.factors), values(rounded))
            store.weights.fill(0)
            totals = steps(next(iter(run.training.epoch(3, run.batch_size))), steps_begun(steps))
            assert totals.loss / totals.count == pytest.approx(np.log(run.model.widths[-1]), rel=1e-3)

    @pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
    def test_a_rule_of_ones_own_that_goes_back_to_ours_is_given_no_factors(self, monkeypatch, tmp_path, rule):
        """Its `update` need not know of any, and may change the weights once more."""

        class Smaller(RULES[rule]):
            def update(self, w, g_SN, pace, *state):
                super().update(w, g_SN, pace, *state)
                w *= 0.5

        path = write_image_set(tmp_path / "set.h5", train=61)
        monkeypatch.setitem(RULES, rule, Smaller)
        device = opened(monkeypatch, installed(monkeypatch), precision="bfloat16")
        run, steps, _ = taken_by(
            device, path, {**BASE, "optimizer": rule, "precision": "bfloat16"}, OptimizerOptions(lr=0.01)
        )
        store = run.model.store
        rounded = device.xp.zeros(store.size, device.storage("bfloat16"))
        device.kernels.narrow(store.weights, rounded, "bfloat16")
        np.testing.assert_array_equal(values(store.factors), values(rounded))
        assert steps.replays

    def test_a_replay_is_one_launch_of_few_kernels(self, monkeypatch, tmp_path):
        path = write_image_set(tmp_path / "set.h5", train=61)
        device = opened(monkeypatch, installed(monkeypatch))
        taken_by(device, path, {**BASE, "optimizer": "adam"}, OptimizerOptions(lr=0.01))
        names = [event[1] for event in of_steps(device.xp)[0] if event[0] == "launch"]
        products = ["cublasLtMatmul"] * 3
        backward = ["cublasLtMatmul"] * 5  # dW with db, and dx with the gradient of the relu below: one kernel each
        assert names == [
            "deal", "gather_u8_f32", *products, "cross_entropy_of_few", *backward, "check",
            "advance", "adam",
        ]  # fmt: skip
        assert {event for event in device.xp.events if event[0] == "replay"} == {("replay", len(names))}


class TestGraphs:
    @pytest.mark.parametrize("where", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
    def test_their_times_are_told(self, monkeypatch, where):
        if where == "emulated":
            installed(monkeypatch)
        device = Cuda(0)
        a = device.to_device(np.zeros(4, np.float32))
        a.fill(1)  # which loads CuPy's kernel: nothing may be loaded while something is captured
        times = device.time([device.capture(lambda: a.fill(1))] * 2)
        assert len(times) == 2
        assert all(0 < seconds < 1 for seconds in times)

    @pytest.mark.parametrize("where", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
    def test_none_is_given_back_while_another_one_is_captured(self, monkeypatch, where):
        """As garbage that is collected there: of steps of other shapes, say, whose graphs are not used any more."""
        if where == "emulated":
            installed(monkeypatch)
        device = Cuda(0)
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
    @pytest.mark.parametrize("where", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
    def test_large_arrays_cross_over_in_parts(self, monkeypatch, where):
        device = Cuda(0) if where == "gpu" else opened(monkeypatch, installed(monkeypatch))
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
