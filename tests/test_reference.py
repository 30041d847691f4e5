"""The reference itself: its gradients against finite differences, its update rules against numbers worked by hand."""

import numpy as np
import pytest

from tests.once import once
from tests.reference import RULES, SGD, Reference

pytestmark = once

RANDOM = np.random.default_rng(7)
X_BI = RANDOM.normal(size=(8, 5))
T_B = RANDOM.integers(3, size=8)
MASKS = [RANDOM.integers(2, size=(8, width)) * 2.0 for width in (6, 4)]


@pytest.mark.parametrize("masks", [(), MASKS], ids=["plain", "dropout"])
def test_gradients_are_those_of_finite_differences(masks):
    reference = Reference.random((5, 6, 4, 3), 8)
    loss, _, gradients = reference.gradient(X_BI, T_B, masks)
    assert loss == reference.loss(X_BI, T_B, masks)
    h = 1e-6
    for weights, gradient in zip(reference.weights, gradients, strict=True):
        for place in np.ndindex(weights.shape):
            kept = weights[place]
            weights[place] = kept + h
            above = reference.loss(X_BI, T_B, masks)
            weights[place] = kept - h
            below = reference.loss(X_BI, T_B, masks)
            weights[place] = kept
            assert (above - below) / (2 * h) == pytest.approx(gradient[place], abs=1e-7)


def test_loss_and_count_of_a_network_that_knows_nothing():
    reference = Reference([np.zeros((2, 4)), np.zeros(4)])
    loss, correct, _ = reference.gradient(np.ones((3, 2)), np.array([0, 1, 0]))
    assert loss == pytest.approx(3 * np.log(4))
    assert correct == 2  # of equal logits the first is the guess


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # One weight 1, weight decay 0.5, alpha 0.1, gradients 2 and -1.
        ("sgd", [1 - 0.1 * 2.5, 0.75 - 0.1 * (-1 + 0.375)]),
        ("momentum", [0.75, 0.75 - 0.1 * (0.9 * 2.5 - 1 + 0.375)]),
        # The first step of Adam is alpha times the gradient's sign.
        ("adam", [1 - 0.1, None]),
        ("adamw", [1 - 0.1 - 0.1 * 0.5, None]),
    ],
)
def test_update_rules_by_hand(name, expected):
    rule, weights = RULES[name](0.1, 0.5), [np.array([1.0])]
    for gradient, value in zip((2.0, -1.0), expected, strict=True):
        weights = rule.step(weights, [np.array([gradient])])
        if value is not None:
            assert weights[0][0] == pytest.approx(value, abs=1e-8)


def test_the_second_step_of_adam_by_hand():
    rule, weights = RULES["adam"](0.1), [np.array([0.0])]
    for gradient in (2.0, -1.0):
        weights = rule.step(weights, [np.array([gradient])])
    m_hat = (0.9 * 0.2 - 0.1) / (1 - 0.81)
    v_hat = (0.999 * 0.004 + 0.001) / (1 - 0.998001)
    assert weights[0][0] == pytest.approx(-0.1 - 0.1 * m_hat / np.sqrt(v_hat), abs=1e-8)


def test_training_divides_by_the_rows_and_clips_the_mean():
    reference = Reference.random((5, 6, 4, 3), 8)
    before = [w.copy() for w in reference.weights]
    _, _, sums = reference.gradient(X_BI, T_B)
    norm = np.sqrt(sum(np.sum((g / 8) ** 2) for g in sums))
    reference.train([(X_BI, T_B)], SGD(1.0), clip_norm=norm / 2)
    for after, w, g in zip(reference.weights, before, sums, strict=True):
        np.testing.assert_allclose(after, w - g / 16, atol=1e-12)
