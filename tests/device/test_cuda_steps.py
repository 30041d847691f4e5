"""Training steps on an emulated GPU, by its own kernels and calls of cublasLt, streams and graphs."""

import numpy as np
import pytest

from mpi_parallel.config.learning import OptimizerOptions
from mpi_parallel.data_parallel.memory import Budget
from mpi_parallel.device import Host, cublaslt_library
from mpi_parallel.device.cuda import Cuda
from mpi_parallel.device.interface import BEGUN
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.training.captured import NOT_CAPTURED
from tests.device.emulated import Emulated, installed, values
from tests.device.opened import opened
from tests.device.test_devices import ALONE, Training, compare
from tests.once import once
from tests.samples import write_image_set
from tests.training.test_captured import BASE, STEPS, taken_by, told_by_the_host

pytestmark = once


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
