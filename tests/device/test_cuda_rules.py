"""kernels/rules.cu against NumPy's expressions: optimizer rules and the pace of steps, on the CPU and on a GPU."""

import math

import numpy as np
import pytest

from mpi_parallel.device import cuda_kernels
from mpi_parallel.device.interface import BEGUN, HELD, LOSS_SCALE, PACE, RATE, SCALE, Pace, Schedule
from mpi_parallel.nn.learning_rate import learning_rate
from tests.device.operands import PLAIN_KERNELS, TYPES, empty, normal, read
from tests.device.where import Place, on, slots_on, values
from tests.once import once

pytestmark = once

RULES = {
    "sgd": (1, (0.01,)),
    "momentum": (2, (0.9, 0.01)),
    "adam": (3, (0.9, 0.999, 1e-8, 0.01, 0.2)),
    "lamb": (4, (0.9, 0.999, 1e-6, 0.02)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [0, 1, 700])
@pytest.mark.parametrize("slots", [1, 3])
def test_update_rules(kernels, rule, n, slots):
    count, constants = RULES[rule]
    arrays = [np.abs(normal(n, seed=k)) for k in range(count)]
    wider = normal(slots, n + 5, seed=9)
    g = wider[:, :n]
    kept = np.zeros(PACE)
    kept[:4] = 0.5, 0.1, math.sqrt(1 - 0.999**3) / (1 - 0.9**3), math.sqrt(1 - 0.999**3)
    for pace in (Pace(0.5, 0.1, 3), on(kept)):
        theirs, ours = [a.copy() for a in arrays], [on(a) for a in arrays]
        getattr(PLAIN_KERNELS, rule)(*theirs, g, Pace(0.5, 0.1, 3), *constants)
        getattr(kernels, rule)(*ours, slots_on(wider, n), pace, *constants)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(read(one), other, rtol=1e-5, atol=1e-5)
    kept[SCALE] = np.nan  # the step is not to be taken
    ours = [on(a) for a in arrays]
    getattr(kernels, rule)(*ours, slots_on(wider, n), on(kept), *constants)
    for one, before in zip(ours, arrays, strict=True):
        np.testing.assert_array_equal(read(one), before)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
def test_rules_keep_the_weights_as_operands_too(kernels, rule, kind):
    count, constants = RULES[rule]
    arrays, g = [on(normal(700, seed=k) ** 2) for k in range(count)], slots_on(normal(1, 700, seed=9), 700)
    kept, held, narrow = empty((700,), kind), empty((700,), kind), empty((700,), kind)
    getattr(kernels, rule)(*arrays, g, Pace(0.5, 0.1, 3), *constants, kept)
    kernels.narrow(arrays[0], narrow, "")
    np.testing.assert_array_equal(values(kept), values(narrow))
    getattr(kernels, rule)(*arrays, g, Pace(np.nan, 0.1, 3), *constants, held)
    np.testing.assert_array_equal(values(held), np.full(700, 77, TYPES[kind]))  # of a step that is not taken


@pytest.mark.parametrize("blocks", [1, 2])
def test_threads_that_have_several_elements(kernels, monkeypatch, blocks):
    """As they do where there are more elements than threads of the largest grid; some have one less than others."""
    monkeypatch.setattr(cuda_kernels, "BLOCKS", blocks)
    for rule in RULES:
        test_update_rules(kernels, rule, 3000, 2)


@pytest.mark.parametrize("n", [0, 1, 3000])
@pytest.mark.parametrize("squares", [(4.0, 9.0), (0.0, 9.0), (4.0, 0.0)])
def test_trust(kernels, n, squares):
    w, r, of = normal(n), normal(n, seed=1), np.array(squares)
    expected, ours = w.copy(), on(w)
    PLAIN_KERNELS.trust(expected, r.copy(), of, Pace(1.0, 0.1))
    kernels.trust(ours, on(r), on(of), Pace(1.0, 0.1))
    np.testing.assert_allclose(read(ours), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 4000])
def test_slots_are_summed_in_their_order(kernels, count, n):
    wider = normal(count, n + 3) * np.float32(10) ** np.arange(count, dtype=np.float32)[:, None]
    slots = wider[:, :n]
    expected, ours = np.empty(n, np.float32), empty((n,), "f32")
    PLAIN_KERNELS.sum_slots(expected, slots)
    kernels.sum_slots(ours, slots_on(wider, n))
    np.testing.assert_array_equal(read(ours), expected)


SCHEDULES = [
    Schedule(0.1, False, 0, 100),
    Schedule(0.1, True, 3, 40),
    Schedule(0.1, True, 3, 2, clip=0.5),
    Schedule(0.1, False, 0, 100, clip=1e9, growth=4),
]


def told_rows() -> np.ndarray:
    """Memory of the host to which a kernel may write."""
    shape = 3, 6 + PACE
    return Place.gpu.pinned(shape, np.float64) if Place.gpu else np.zeros(shape)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_pace_is_that_of_the_host_step_by_step(kernels, schedule):
    ours, theirs, told, expected = on(np.zeros(PACE)), np.zeros(PACE), told_rows(), told_rows()
    ours[LOSS_SCALE], theirs[LOSS_SCALE] = 8.0, 8.0
    for step in range(24):
        tail = np.array([3.0, 2.0, 20.0, 0.0, 0.0, np.nan if step % 7 == 5 else 0.0], np.float32)
        squares = np.array([float(step), 0.25, 0.0]) if schedule.clip else None
        if step == 13 and squares is not None:
            squares[:] = np.inf
        PLAIN_KERNELS.advance(theirs, tail, squares, schedule, expected)
        kernels.advance(ours, on(tail), None if squares is None else on(squares), schedule, told)
        np.testing.assert_allclose(values(ours), theirs, rtol=1e-12)
        np.testing.assert_allclose(told, expected, rtol=1e-12)
        np.testing.assert_array_equal(told[step % 3], [*tail, *values(ours)])
        rate = learning_rate(step, base=0.1, schedule="cosine" if schedule.cosine else "constant",
                             warmup=schedule.warmup, total=schedule.total)  # fmt: skip
        assert theirs[RATE] == pytest.approx(rate, rel=1e-12, abs=1e-18)
        assert theirs[BEGUN] == step + 1
        assert theirs[HELD] == (not np.isfinite(theirs[SCALE]) and not schedule.growth)
        ours[HELD] = theirs[HELD] = 0.0


@pytest.mark.parametrize(("loss", "scale", "holds"), [(3.0, 8.0, 0), (3.0, 1.0, 1), (np.nan, 8.0, 1)])
def test_a_device_holds_where_no_scale_of_the_loss_is_to_blame(kernels, loss, scale, holds):
    tail, good = np.array([loss, 2, 20, 0, 0, np.nan], np.float32), np.array([3, 2, 20, 0, 0, 0], np.float32)
    ours, theirs, told, expected = on(np.zeros(PACE)), np.zeros(PACE), told_rows(), told_rows()
    ours[LOSS_SCALE], theirs[LOSS_SCALE] = scale, scale
    for rows in (tail, good, good):
        kernels.advance(ours, on(rows), None, SCHEDULES[-1], told)
        PLAIN_KERNELS.advance(theirs, rows, None, SCHEDULES[-1], expected)
        np.testing.assert_allclose(values(ours), theirs, rtol=1e-12)
        np.testing.assert_allclose(told, expected, rtol=1e-12)
    assert theirs[HELD] == holds
    assert theirs[BEGUN] == (1 if holds else 3)
    assert np.isnan(theirs[SCALE]) == holds
