"""The network as scikit-learn and notebooks use it, on one rank and on many."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from mpi4py import MPI
from sklearn.utils.estimator_checks import check_estimator

from mpi_parallel import Classifier
from tests.once import once
from tests.samples import SHAPE, images_and_labels
from tests.trained import logits_of, some_network, write_network

SMALL = {"hidden": (8,), "epochs": 30, "batch_size": 32, "lr": 0.01}


@once
def test_scikit_learn_finds_nothing_amiss():
    """All of its checks, none left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's own, of checks for what is not installed
        outcomes = check_estimator(Classifier(hidden=(32,), epochs=60, batch_size=32, lr=0.01), on_fail=None)
    assert [each["check_name"] for each in outcomes if each["status"] == "failed"] == []
    assert sum(each["status"] == "passed" for each in outcomes) > 45


def test_learns_images_and_names():
    images, labels = images_and_labels(300)
    names = np.array(["ant", "bee", "owl"])[labels]
    found = Classifier(**SMALL).fit(images[:200], names[:200])
    assert found.classes_.tolist() == ["ant", "bee", "owl"]
    assert found.score(images[200:], names[200:]) > 0.8
    assert found.predict_proba(images).shape == (300, 3)
    assert np.allclose(found.predict_proba(images).sum(axis=1), 1, atol=1e-6)
    assert len(found.loss_curve_) == 30
    assert found.loss_curve_[-1] < found.loss_curve_[0]


@pytest.mark.parallel([2, 3])
def test_ranks_learn_together_what_one_learns_alone():
    images, labels = images_and_labels(150)
    alone, together = (
        Classifier(**SMALL, reproducible=True, comm=comm).fit(images, labels) for comm in (None, MPI.COMM_WORLD)
    )
    for mine, theirs in zip(alone.trained_.weights(), together.trained_.weights(), strict=True):
        assert (mine == theirs).all()
    assert alone.loss_curve_ == pytest.approx(together.loss_curve_)


def test_a_saved_one_predicts_the_same(tmp_path):
    images, labels = images_and_labels(100)
    found = Classifier(**SMALL).fit(images, labels)
    for name in ("a.safetensors", "a.weights.h5"):
        found.save(tmp_path / name)
        again = Classifier.load(tmp_path / name)
        assert (again.predict(images) == found.predict(images)).all()
        assert again.hidden == (8,)
        assert again.class_names_ == ("0", "1", "2")
    assert (pickle.loads(pickle.dumps(found)).predict(images) == found.predict(images)).all()


def test_a_loaded_one_predicts_what_the_network_says(tmp_path):
    images, network = images_and_labels(700)[0], some_network()
    loaded = Classifier.load(write_network(tmp_path / "net.weights.h5"))
    assert (loaded.predict(images) == logits_of(network, images).argmax(axis=1)).all()
    flat = images.reshape(700, -1).astype(np.float64)
    assert (loaded.predict_proba(flat) == loaded.predict_proba(images)).all()
    assert (loaded.predict_proba(images[3:7]) == loaded.predict_proba(images)[3:7]).all()


def test_images_of_another_size(tmp_path):
    loaded = Classifier.load(write_network(tmp_path / "net.weights.h5"))
    with pytest.raises(ValueError, match="X has 20 features, but Classifier is expecting 12 features as input"):
        loaded.predict(np.zeros((3, 4, 5)))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lr": -1}, "--lr -1: must be a positive number"),
        ({"optimizer": "lbfgs"}, "choose from adam"),
        ({"hidden": (0,)}, "at least 1"),
    ],
)
def test_bad_parameters(parameters, message):
    images, labels = images_and_labels(20)
    with pytest.raises(ValueError, match=message):
        Classifier(**parameters).fit(images, labels)


def test_training_that_goes_bad():
    images, labels = images_and_labels(60)
    with pytest.raises(ValueError, match="training went bad in step"):
        Classifier(lr=1e30, epochs=20, optimizer="sgd").fit(images, labels)


def test_it_is_shown_by_what_is_unusual():
    assert repr(Classifier((32,), lr=0.1)) == "Classifier(hidden=(32,), lr=0.1)"


WITHOUT = """
import sys
sys.modules["sklearn"] = None
import numpy as np
from mpi_parallel import Classifier
X = np.random.default_rng(0).normal(size=(40, *{shape}))
try:
    Classifier().predict(X)
except ValueError as error:
    print(type(error).__name__)
print(Classifier(epochs=1).fit(X, np.arange(40) % 3).predict(X).shape)
"""


@once
def test_scikit_learn_is_not_needed():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(shape=SHAPE)], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.split("\n")[:2], done.stderr) == (["NotFittedError", "(40,)"], "")
