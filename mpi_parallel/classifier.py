"""The network for notebooks and for scikit-learn: `Classifier(hidden=(128, 64)).fit(X, y)`, `Classifier.load(path)`.

It follows scikit-learn's conventions without needing it.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import ArrayLike, NDArray

from mpi_parallel.config import TrainConfig
from mpi_parallel.data_parallel.inference import logits_of_array
from mpi_parallel.data_parallel.scaling import Scaler
from mpi_parallel.device import open_device
from mpi_parallel.exchange import registry
from mpi_parallel.exchange.trained import Trained
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.nn.mlp import MLP
from mpi_parallel.options import InputError, build
from mpi_parallel.result_merging.confusion import softmax
from mpi_parallel.training.checkpoints.saved import load, put
from mpi_parallel.training.learning import learn

AS_IS = (np.uint8, np.uint16, np.float32)  # types of pixels that the kernels read; others become float32
NOT_OPTIONS = ("hidden", "comm")


class NotFittedError(ValueError, AttributeError):
    """Prediction was asked of a classifier that has learnt nothing; scikit-learn's own where that is installed."""


class Classifier:
    """A multilayer perceptron: Dense relu layers, softmax cross-entropy, images standardised by feature.

    The parameters are the options of `train`, of the same names (`python -m mpi_parallel.train --help`).
    With `comm`, a communicator of mpi4py, its ranks train together: all call `fit` with the same X and y and each takes
    its share; the result does not depend on how many they are. Without, this process trains alone.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (128, 64),
        *,
        epochs: int = 10,
        batch_size: int = 256,
        optimizer: str = "adam",
        lr: float = 1e-3,
        schedule: str = "constant",
        warmup: int = 0,
        weight_decay: float = 0.0,
        clip_norm: float = 0.0,
        dropout: float = 0.0,
        seed: int = 0,
        merge: str = "auto",
        reproducible: bool = False,
        device: str = "auto",
        precision: str = "float32",
        threads: int | None = None,
        comm: MPI.Intracomm | None = None,
    ) -> None:
        self.hidden, self.epochs, self.batch_size = hidden, epochs, batch_size
        self.optimizer, self.lr, self.schedule, self.warmup = optimizer, lr, schedule, warmup
        self.weight_decay, self.clip_norm, self.dropout = weight_decay, clip_norm, dropout
        self.seed, self.merge, self.reproducible = seed, merge, reproducible
        self.device, self.precision, self.threads, self.comm = device, precision, threads, comm

    @classmethod
    def load(cls, path: str | Path) -> Classifier:
        """A trained one: from a run's folder, a checkpoint, or weights of another program with their standardisation.

        Its classes are numbers, as labels in the data are; `class_names_` has their names, if any. Raises InputError.
        """
        trained = load(path)
        if trained.mean is None:
            raise InputError(f"{path} does not tell how images are standardised")
        loaded = cls(hidden=trained.widths[1:-1])
        return loaded._hold(trained, np.arange(trained.widths[-1]))

    def fit(self, X: ArrayLike, y: ArrayLike) -> Classifier:
        """Learn from images X (N, ...) and their classes y (N,), numbers or names. Raises ValueError for bad ones."""
        images = _images(X, type(self).__name__)
        classes, labels = _classes(y, len(images))
        given = {
            name: value for name, value in self.get_params().items() if name not in NOT_OPTIONS and value is not None
        }
        hidden = tuple(int(width) for width in np.ravel(self.hidden))
        config = build(TrainConfig, {**given, "hidden": hidden, "data": "array"})
        comm = Communicator(self.comm or MPI.COMM_SELF)
        rows = images.reshape(len(images), -1)
        trained, self.history_ = learn(rows, labels, len(classes), config, comm)
        self.loss_curve_ = [score.loss for score in self.history_]
        return self._hold(
            Trained(trained.layers, trained.mean, trained.std, images.shape[1:], tuple(map(str, classes))), classes
        )

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The class (N,) of each image (N, ...)."""
        chosen: NDArray[Any] = self.classes[self._logits(X).argmax(axis=1)]
        return chosen

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probabilities (N, classes) of the classes in `classes_`."""
        return softmax(self._logits(X))

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """The share of images whose class is predicted."""
        return float(np.mean(self.predict(X) == np.asarray(y)))

    def save(self, path: str | Path) -> None:
        """Write the network as .onnx, .safetensors or .weights.h5 (Keras); `load` reads the latter two."""
        self._fitted()
        registry.write(self.trained_, Path(path))

    @property
    def classes(self) -> NDArray[Any]:
        """What `predict` chooses from. Raises NotFittedError."""
        self._fitted()
        return self.classes_

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters of the constructor by name, as scikit-learn asks for them."""
        return {name: getattr(self, name) for name in list(inspect.signature(type(self)).parameters)}

    def set_params(self, **params: Any) -> Classifier:
        """Change parameters by name. Raises ValueError for unknown ones."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {self}. Valid parameters are: {list(known)}."
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        usual = {name: each.default for name, each in inspect.signature(type(self)).parameters.items()}
        changed = (f"{name}={value!r}" for name, value in self.get_params().items() if value is not usual[name])
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "trained_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags  # only scikit-learn calls this

        return Tags(
            estimator_type="classifier", target_tags=TargetTags(required=True), classifier_tags=ClassifierTags(),
            transformer_tags=None, regressor_tags=None, input_tags=InputTags(three_d_array=True),
        )  # fmt: skip

    def _hold(self, trained: Trained, classes: NDArray[Any]) -> Classifier:
        self.trained_, self.classes_ = trained, classes
        self.class_names_, self.n_features_in_ = trained.classes, trained.widths[0]
        return self

    def _logits(self, X: ArrayLike) -> NDArray[np.float32]:
        self._fitted()
        images = _images(X, type(self).__name__).reshape(len(np.asarray(X)), -1)
        if images.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {images.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input"
            )
        model = MLP(open_device(self.device, 0), self.trained_.widths, seed=None)
        put(self.trained_, model)
        return logits_of_array(model, Scaler.of(self.trained_.mean, self.trained_.std), images)

    def _fitted(self) -> None:
        if not hasattr(self, "trained_"):
            message = f"This {type(self).__name__} instance is not fitted yet: call 'fit', or 'load' a trained one."
            raise _not_fitted_error()(message)


def _not_fitted_error() -> type[Exception]:
    try:
        from sklearn.exceptions import NotFittedError as Theirs
    except ImportError:
        return NotFittedError
    theirs: type[Exception] = Theirs
    return theirs


def _images(X: ArrayLike, name: str) -> NDArray[Any]:
    """X (N, ...) in a type that the kernels read. Raises ValueError or TypeError in scikit-learn's words."""
    if hasattr(X, "toarray"):
        raise TypeError("Sparse data was passed, but dense data is required: convert it with X.toarray()")
    array = np.asarray(X)
    if array.dtype.kind == "c":
        raise ValueError("Complex data not supported")
    if array.ndim < 2:
        raise ValueError(
            f"Expected 2D array, got {array.ndim}D array instead: images are (N, H, W[, C]) or (N, features). "
            "Reshape your data with X.reshape(-1, 1) for one feature or X.reshape(1, -1) for one sample"
        )
    if 0 in array.shape:
        what = "feature(s)" if len(array) else "sample(s)"
        raise ValueError(f"Found array with 0 {what} (shape={array.shape}) while a minimum of 1 is required by {name}.")
    if array.dtype not in AS_IS:
        array = array.astype(np.float64)  # which numbers as text and objects become, too
        if np.isfinite(array).all():
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"Input X contains NaN or infinity, or values too large for float32; {name} takes neither.")
    return np.ascontiguousarray(array)


def _classes(y: ArrayLike, rows: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The sorted classes, and the number of each row's among them. Raises ValueError in scikit-learn's words."""
    if y is None:
        raise ValueError("This Classifier requires y to be passed, but the target y is None")
    values = np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        import warnings

        warnings.warn(
            "A column-vector y was passed when a 1d array was expected: use y.ravel()", _conversion_warning(), 3
        )
        values = values.ravel()
    if values.ndim != 1 or len(values) != rows:
        raise ValueError(f"y should be a 1d array of {rows} classes, got an array of shape {values.shape} instead.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("Input y contains NaN or infinity.")
    if values.dtype.kind == "f" and (values != np.floor(values)).any():
        raise ValueError("Unknown label type: continuous. Classes are whole numbers or names")
    classes, labels = np.unique(values, return_inverse=True)
    return classes, labels.astype(np.int32)


def _conversion_warning() -> type[Warning]:
    try:
        from sklearn.exceptions import DataConversionWarning
    except ImportError:
        return UserWarning
    theirs: type[Warning] = DataConversionWarning
    return theirs
