"""What a classifier got right and wrong, in exact counts: those of ranks add up to those of one, whatever the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.functional import round_finite

LARGEST = 2048  # classes up to which the whole matrix is counted: 32 MiB
Counts = NDArray[np.int64]


class Tally:
    """Counts of rows by their class and the one that was predicted, of places of the right class, and the loss."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.matrix: Counts | None = np.zeros((classes, classes), np.int64) if classes <= LARGEST else None
        self.support, self.predicted, self.correct = (np.zeros(classes, np.int64) for _ in range(3))
        self.places = np.zeros(classes, np.int64)  # rows whose class is the first, second, ... most probable
        self.loss = 0.0  # summed, in multiples whose sums are exact (round_finite)

    def add(self, z_BK: NDArray[np.float32], t_B: NDArray[np.int32]) -> None:
        """Count rows by their logits and classes. Of equal logits the lower class comes first."""
        rows = np.arange(len(t_B))
        right = z_BK[rows, t_B][:, None]
        before = np.arange(self.classes) < t_B[:, None]
        place = ((z_BK > right) | ((z_BK == right) & before)).sum(axis=1)
        chosen = z_BK.argmax(axis=1)
        self.places += np.bincount(place, minlength=self.classes)
        self.support += np.bincount(t_B, minlength=self.classes)
        self.predicted += np.bincount(chosen, minlength=self.classes)
        self.correct += np.bincount(t_B[place == 0], minlength=self.classes)
        if self.matrix is not None:
            pairs = t_B.astype(np.int64) * self.classes + chosen
            self.matrix += np.bincount(pairs, minlength=self.classes**2).reshape(self.matrix.shape)
        self.loss += round_finite(float(cross_entropy(z_BK, t_B).sum()))

    def merge(self, comm: Communicator) -> Evaluation:
        """What all ranks counted; collective."""
        for counts in (self.support, self.predicted, self.correct, self.places, self.matrix):
            if counts is not None:
                comm.sum(counts)
        return Evaluation(comm.total(self.loss), self.support, self.predicted, self.correct, self.places, self.matrix)


def cross_entropy(z_BK: NDArray[np.float32], t_B: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log softmax(z)[t] of each row, in float64."""
    z = z_BK.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    loss: NDArray[np.float64] = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(t_B)), t_B]
    return loss


def softmax(z_BK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities (B, K) of logits, computed in float64."""
    e = np.exp(z_BK.astype(np.float64) - z_BK.max(axis=1, keepdims=True, initial=-np.inf))
    probabilities: NDArray[np.float32] = (e / e.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


@dataclass(frozen=True)
class Evaluation:
    """The counts of all rows, and what follows from them; a share of nothing is 0, as in scikit-learn."""

    loss_sum: float
    support: Counts  # (K,) rows of each class
    predicted: Counts  # (K,) rows that were taken for it
    correct: Counts  # (K,) rows of it that were taken for it
    places: Counts  # (K,) rows whose class was the first, second, ... most probable
    matrix: Counts | None  # (K, K) rows of class i that were taken for j; None where there are very many classes

    @property
    def count(self) -> int:
        return int(self.support.sum())

    @property
    def loss(self) -> float:
        """The mean cross-entropy."""
        return self.loss_sum / max(1, self.count)

    @property
    def accuracy(self) -> float:
        return int(self.correct.sum()) / max(1, self.count)

    def top(self, k: int) -> float:
        """Share of rows whose class is among the k most probable."""
        return int(self.places[:k].sum()) / max(1, self.count)

    @property
    def precision(self) -> NDArray[np.float64]:
        """(K,) of the rows taken for a class, the share that is of it."""
        return _ratio(self.correct, self.predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """(K,) of the rows of a class, the share taken for it."""
        return _ratio(self.correct, self.support)

    @property
    def f1(self) -> NDArray[np.float64]:
        """(K,) harmonic mean of the two."""
        return _ratio(2 * self.correct, self.predicted + self.support)

    def mean(self, values: NDArray[np.float64], weighted: bool = False) -> float:
        """Over the classes that are there or were predicted, each alike or by its rows."""
        there = (self.support + self.predicted) > 0
        weights = self.support if weighted else there
        return float((values * weights).sum() / max(1, weights.sum()))

    def confused(self, most: int) -> list[tuple[int, int, int]]:
        """(class, taken for, rows) of the most frequent mistakes."""
        if self.matrix is None:
            return []
        wrong = self.matrix.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [divmod(int(place), len(self.support)) for place in order]
        return [(t, p, int(wrong[t, p])) for t, p in pairs if wrong[t, p]]


def _ratio(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """a / b, 0 where b is 0."""
    values: NDArray[np.float64] = np.divide(a, b, out=np.zeros(len(a)), where=b > 0)
    return values
