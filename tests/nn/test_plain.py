"""The float64 network of verify, against the one of the tests."""

import numpy as np
import pytest

from mpi_parallel.nn.plain import mean_gradient
from tests.once import once
from tests.reference import Reference

pytestmark = once


@pytest.mark.parametrize("widths", [(5, 3), (5, 4, 3), (6, 9, 8, 4)])
def test_gradients_are_those_of_the_reference(widths):
    random = np.random.default_rng(1)
    reference = Reference.random(widths, 2)
    x, t = random.normal(size=(7, widths[0])), random.integers(0, widths[-1], 7)
    _, _, sums = reference.gradient(x, t)
    for ours, theirs in zip(mean_gradient(reference.weights, x, t), sums, strict=True):
        np.testing.assert_allclose(ours, theirs / 7, rtol=1e-12, atol=1e-14)
