"""Which device a run gets, and that the maths runs on any: on the strict one here, on a GPU where there is one."""

import re
import sys
from types import ModuleType

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.data_parallel.loader import Batch
from mpi_parallel.data_parallel.replica import Replica
from mpi_parallel.data_parallel.rows import Rows
from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.device import Device, Host, open_device
from mpi_parallel.device.clock import Clock
from mpi_parallel.device.cuda import Cuda
from mpi_parallel.device.expressions import Expressions
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.mpi.partition import block
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.options import InputError
from mpi_parallel.result_merging.flat import Flat
from mpi_parallel.result_merging.metrics import Totals
from mpi_parallel.training.step import train_step
from tests.device.emulated import emulated, installed
from tests.device.shim import compiler
from tests.device.streams import CUDARuntimeError
from tests.device.strict import Strict

N, FEATURES, CLASSES, BATCH = 50, 12, 4, 20
ALONE = Communicator(MPI.COMM_SELF)


def plain_host() -> Host:
    """The host by the expressions that the GPU runs, too, in place of the compiled kernels."""
    host = Host()
    host.kernels = Expressions(np)
    return host


class Training:
    """Some steps on a device, of this rank's rows of each batch."""

    def __init__(self, device: Device, comm: Communicator, rule: str = "adam", micro_batch: int | None = None) -> None:
        random = np.random.default_rng(5)
        labels_N = random.integers(CLASSES, size=N, dtype=np.int32)
        images_NF = random.integers(100, size=(N, FEATURES)).astype(np.uint8)
        images_NF[np.arange(N), labels_N] += 100  # something to learn
        self.device, self.comm = device, comm.on(device)
        self.rows = Rows(images_NF, labels_N, Scaler.of(images_NF.mean(axis=0), images_NF.std(axis=0)), device)
        self.model = MLP(device, (FEATURES, 16, 8, CLASSES), dropout=0.2, seed=1)
        self.engine = Replica(self.model, self.rows, Clock(), micro_batch)
        self.merger = Flat(self.model.store, self.comm)
        self.optimizer = RULES[rule](self.model.store, 0.01)

    def step(self, number: int) -> Totals:
        random = np.random.default_rng([6, number])
        index, keys = random.permutation(N)[:BATCH], random.integers(2**32, size=BATCH, dtype=np.uint32)
        mine = block(BATCH, self.comm.size, self.comm.rank)
        part = Batch(self.device.to_device(index[mine]), self.device.to_device(keys[mine]))
        return train_step(self.engine, part, self.merger, self.optimizer, 0.01, clip_norm=0.3)

    def steps(self, count: int) -> list[Totals]:
        return [self.step(number) for number in range(count)]


def compare(ours: Training, theirs: Training, steps: int = 12, tolerance: float = 0.0) -> None:
    """The same steps on both: the same totals, the same weights, the same score."""
    first = [w.copy() for w in theirs.model.weights()]
    doubtful = 1 if tolerance else 0  # rows whose two largest logits may be as good as equal
    for one, other in zip(ours.steps(steps), theirs.steps(steps), strict=True):
        assert (one.count, one.stop, one.finite) == (other.count, other.stop, other.finite) == (BATCH, False, True)
        assert one.loss == pytest.approx(other.loss, rel=tolerance, abs=0)
        assert abs(one.correct - other.correct) <= doubtful
    for one, other, before in zip(ours.model.weights(), theirs.model.weights(), first, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
        assert np.abs(other - before).max() > 1e-3
    (loss, correct, count), expected = ours.engine.score(ours.rows), theirs.engine.score(theirs.rows)
    assert (loss, count) == pytest.approx((expected[0], expected[2]), rel=tolerance, abs=0)
    assert abs(correct - expected[1]) <= doubtful


class TestStepOnTheStrictDevice:
    @pytest.mark.parametrize("micro_batch", [None, 6])
    @pytest.mark.parametrize("rule", RULES)
    def test_gives_the_bits_of_the_host(self, rule, micro_batch):
        compare(Training(Strict(), ALONE, rule, micro_batch), Training(plain_host(), ALONE, rule, micro_batch))

    def test_a_rank_without_rows_takes_part(self):
        device = Strict()
        training = Training(device, ALONE)
        empty = Batch(device.to_device(np.zeros(0, np.int64)), device.to_device(np.zeros(0, np.uint32)))
        totals = train_step(training.engine, empty, training.merger, training.optimizer, 0.01)
        assert (totals.count, totals.loss, totals.finite) == (0, 0, True)

    def test_a_step_of_one_rank_brings_back_its_tail_and_no_more(self):
        device = Strict()
        training = Training(device, ALONE)
        training.steps(2)
        device.crossings.clear()
        training.step(2)
        assert device.crossings == {"to_device": 2, "to_host": 1}  # the batch's index and keys; the tail

    @pytest.mark.parallel([1, 2, 3])
    def test_ranks_agree_with_the_host(self):
        world = Communicator(MPI.COMM_WORLD)
        device = Strict()
        compare(Training(device, world), Training(plain_host(), world))
        device.crossings.clear()
        staged = Training(device, world)
        compare(staged, Training(Host(), ALONE), tolerance=2e-3)
        assert device.crossings["refill"] == 0  # what is merged goes through pinned memory


@pytest.fixture
def gpu() -> Cuda:
    return Cuda(0)


@pytest.mark.gpu
class TestGPU:
    @pytest.mark.parametrize("micro_batch", [None, 6])
    @pytest.mark.parametrize("rule", RULES)
    def test_steps_agree_with_the_host(self, gpu, rule, micro_batch):
        compare(Training(gpu, ALONE, rule, micro_batch), Training(Host(), ALONE, rule, micro_batch), tolerance=2e-3)

    def test_one_step_agrees_to_rounding(self, gpu):
        ours, theirs = Training(gpu, ALONE, "sgd"), Training(Host(), ALONE, "sgd")
        ours.step(0), theirs.step(0)
        mine, other = ours.model.store, theirs.model.store
        for name, parameter in other.parameters.items():
            gradient = gpu.to_host(mine.parameters[name].gradient)
            np.testing.assert_allclose(gradient, parameter.gradient, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gpu.to_host(mine.tail), other.tail, rtol=1e-4)

    def test_a_rank_without_rows_takes_part(self, gpu):
        training = Training(gpu, ALONE)
        empty = Batch(gpu.to_device(np.zeros(0, np.int64)), gpu.to_device(np.zeros(0, np.uint32)))
        totals = train_step(training.engine, empty, training.merger, training.optimizer, 0.01)
        assert (totals.count, totals.loss, totals.finite) == (0, 0, True)

    def test_the_same_steps_give_the_same_bits(self, gpu):
        compare(Training(gpu, ALONE), Training(gpu, ALONE))

    def test_is_what_auto_takes(self, gpu):
        assert open_device("auto", 0).kind == "cuda"
        assert "GPU 0 of" in gpu.describe()

    def test_arrays_cross_over_as_copies(self, gpu):
        host = np.arange(6, dtype=np.float32)
        array = gpu.to_device(host)
        array *= 2
        gpu.refill(array, gpu.to_host(array) + 1)
        gpu.synchronize()
        assert gpu.to_host(array).tolist() == [1, 3, 5, 7, 9, 11]
        assert host.tolist() == [0, 1, 2, 3, 4, 5]

    def test_bytes_are_aligned(self, gpu):
        assert all(gpu.empty_bytes(count).data.ptr % 64 == 0 for count in (1, 100, 5000))


def insufficient() -> int:
    """What CUDA says of an old driver, and of none."""
    raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


def counting(count, driver: int = 13000) -> ModuleType:
    """A cupy that sees as many GPUs as `count` says."""
    cupy = emulated()
    cupy.cuda.runtime.getDeviceCount = count
    cupy.cuda.runtime.driverGetVersion = lambda: driver
    return cupy


def old_driver(version: int = 12080) -> ModuleType:
    cupy = emulated()
    cupy.cuda.runtime.driverGetVersion = lambda: version
    cupy.cuda.runtime.runtimeGetVersion = lambda: 13000
    return cupy


class TestOpenDevice:
    def test_cpu_never_looks_for_a_gpu(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cupy", counting(lambda: pytest.fail("looked for a GPU")))
        assert open_device("cpu", 0).kind == "cpu"

    # None in sys.modules makes `import cupy` fail.
    NOTHING = pytest.mark.parametrize(
        ("cupy", "why"),
        [
            (None, r"install mpi_parallel\[cuda12\] or mpi_parallel\[cuda13\]"),
            (counting(insufficient, 0), "this machine has no NVIDIA driver"),
            (counting(insufficient, 11040), "driver is too old for this CuPy"),
            (counting(lambda: 0), "CUDA_VISIBLE_DEVICES"),
            (old_driver(), r"runs CUDA up to 12.8, .* for 13.0: install mpi_parallel\[cuda12\], or have the driver"),
            (old_driver(11080), r"runs CUDA up to 11.8, .* for 13.0: have the driver updated"),
        ],
        ids=["no CuPy", "no driver", "hopeless driver", "no GPU", "old driver", "older driver"],
    )

    @NOTHING
    def test_cuda_that_is_not_there_is_refused_with_the_reason(self, monkeypatch, cupy, why):
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        with pytest.raises(InputError, match=f"^--device cuda: .*{why}"):
            open_device("cuda", 0)

    @NOTHING
    def test_auto_then_takes_the_host(self, monkeypatch, cupy, why):
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        device = open_device("auto", 0)
        assert device.kind == "cpu"
        assert re.search(why, device.lacks) if cupy else device.lacks == ""

    @pytest.mark.parametrize("kind", ["auto", "cuda"])
    @pytest.mark.parametrize(
        ("visible", "node_rank", "number"), [(4, 0, 0), (4, 3, 3), (1, 0, 0), (1, 3, 0), (4, 6, 2)]
    )
    def test_ranks_of_a_node_take_the_gpus_in_turn(self, monkeypatch, kind, visible, node_rank, number):
        """A scheduler may show each rank one GPU, or all GPUs to all."""
        compiler()
        cupy = installed(monkeypatch, gpus=visible)
        device = open_device(kind, node_rank)
        assert (device.kind, device.number, cupy.used) == ("cuda", number, [number])
        assert device.place == f"Emulated GPU at 0000:{number:02x}:00.0"
