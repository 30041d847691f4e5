"""Weights that go out and come back, and what other programs make of them."""

import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from itertools import pairwise

import h5py
import numpy as np
import pytest

from mpi_parallel.exchange import keras_file, onnx_file, registry, safetensors_file
from mpi_parallel.exchange.trained import Trained, chained
from mpi_parallel.options import InputError
from tests.lacking import lacking
from tests.once import once
from tests.trained import logits_of

SHAPE, WIDTHS = (4, 3), (12, 9, 7, 5)
CLASSES = tuple("abcde")


def trained(per_feature=True, widths=WIDTHS, shape=SHAPE):
    rng = np.random.default_rng(1)
    size = widths[0] if per_feature else 1
    layers = [(rng.normal(size=(i, o)), rng.normal(size=o)) for i, o in pairwise(widths)]
    mean, std = rng.uniform(50, 150, size), rng.uniform(20, 60, size)
    return Trained(chained(layers, "test"), mean, std, shape, CLASSES[: widths[-1]], {"step": "7"})


def pixels(rows=50, shape=SHAPE):
    return np.random.default_rng(2).integers(0, 256, (rows, *shape)).astype(np.uint8)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("per_feature", [True, False])
def test_folded_weights_take_raw_pixels(per_feature):
    network = trained(per_feature)
    assert network.folded().mean is None
    assert np.allclose(logits_of(network.folded(), pixels()), logits_of(network, pixels()), atol=1e-4)


@pytest.mark.parametrize("inside", [1 << 30, 0], ids=["one file", "weights beside"])
@pytest.mark.parametrize("per_feature", [True, False])
def test_onnxruntime_runs_the_graph_on_raw_pixels(tmp_path, monkeypatch, per_feature, inside):
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_file, "INSIDE", inside)
    network, path = trained(per_feature), tmp_path / "model.onnx"
    registry.write(network, path)
    assert len(list(tmp_path.iterdir())) == (1 if inside else 2)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["N", *SHAPE]
    logits, probabilities = session.run(["logits", "probabilities"], {"images": pixels().astype(np.float32)})
    expected = logits_of(network, pixels())
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(probabilities - softmax(expected)).max() < 1e-5
    told = session.get_modelmeta().custom_metadata_map
    assert (json.loads(told["classes"]), told["step"]) == (list(CLASSES), "7")


def test_safetensors_come_back(tmp_path):
    pytest.importorskip("safetensors")
    network, path = trained(), tmp_path / "model.safetensors"
    registry.write(network, path)
    again = safetensors_file.read(path)
    assert all((a == b).all() for a, b in zip(again.weights(), network.weights(), strict=True))
    assert (again.shape, again.classes) == (SHAPE, CLASSES)
    assert np.allclose(again.mean, network.mean) and np.allclose(again.std, network.std)


def test_safetensors_are_as_pytorch_names_and_shapes_them(tmp_path):
    from safetensors.numpy import load_file

    registry.write(trained(), tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assert shapes == {
        "0.weight": (9, 12), "0.bias": (9,), "2.weight": (7, 9), "2.bias": (7,), "4.weight": (5, 7), "4.bias": (5,),
        "mean": (12,), "std": (12,),
    }  # fmt: skip


def test_more_than_ten_layers_keep_their_order(tmp_path):
    network = trained(widths=(12, *range(20, 8, -1), 5))
    registry.write(network, tmp_path / "model.safetensors")
    registry.write(network, tmp_path / "model.weights.h5")
    for name in ("model.safetensors", "model.weights.h5"):
        again = registry.reader_of(tmp_path / name)(tmp_path / name)
        assert again.widths == network.widths


def test_a_file_that_is_not_of_dense_layers(tmp_path):
    from safetensors.numpy import save_file

    save_file({"conv.weight": np.zeros((3, 3), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"conv.weight \(3, 3\) has no conv.bias"):
        safetensors_file.read(tmp_path / "a.safetensors")
    dense = {"1.weight": np.zeros((5, 9), np.float32), "1.bias": np.zeros(5, np.float32)}
    for others in (
        {"0.weight": np.ones((9, 1, 3, 3), np.float32), "0.bias": np.zeros(9, np.float32)},  # a convolution
        {"0.weight": np.ones(9, np.float32), "0.running_mean": np.zeros(9, np.float32)},  # a batch normalisation
    ):
        save_file(dense | others, tmp_path / "c.safetensors")
        with pytest.raises(InputError, match=r"0\.\w+.*: only dense layers can be taken"):
            safetensors_file.read(tmp_path / "c.safetensors")
    save_file(dense, tmp_path / "d.safetensors", {"shape": "3x3"})
    with pytest.raises(InputError, match="not a safetensors file"):
        safetensors_file.read(tmp_path / "d.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a safetensors file"):
        safetensors_file.read(tmp_path / "b.safetensors")


KERAS = """
import sys, numpy as np, keras
from keras import layers
weights, images, out, made, archive = sys.argv[1:]
x = np.load(images)
def sequential():
    return keras.Sequential([keras.Input((x.shape[1],)), layers.Dense(9, activation="relu"),
                             layers.Dense(7, activation="relu"), layers.Dense(5)])
model = sequential()
model.load_weights(weights)
np.save(out, model.predict(x, verbose=0))
other = keras.Sequential([keras.Input((4, 3)), layers.Flatten(), layers.Dense(9, activation="relu", name="mine"),
                          layers.Dropout(0.1), layers.Dense(5)])
other.compile(loss="mse", optimizer="adam")
other.save_weights(made)
other.save(archive)
np.savez(out + ".theirs.npz", *other.get_weights())
"""


@once
def test_keras_loads_ours_and_we_load_theirs(tmp_path):
    """In a process of its own, as Keras takes a backend when it is imported."""
    find_spec("keras") or lacking("no Keras here")
    network = trained()
    registry.write(network, tmp_path / "model.weights.h5")
    x = (pixels().reshape(50, -1) - network.mean) / network.std
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    files = [tmp_path / name for name in ("model.weights.h5", "x.npy", "z", "theirs.weights.h5", "theirs.keras")]
    told = {**os.environ, "KERAS_BACKEND": "numpy", "JAX_PLATFORMS": "cpu", "KERAS_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", KERAS, *map(str, files)], env=told, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    expected = logits_of(network, pixels())
    assert np.abs(np.load(tmp_path / "z.npy") - expected).max() < 1e-5 * np.abs(expected).max()
    with np.load(tmp_path / "z.theirs.npz") as arrays:
        theirs = [arrays[name] for name in arrays.files]
    for path in files[3:]:
        again = registry.reader_of(path)(path)
        assert all((a == b).all() for a, b in zip(again.weights(), theirs, strict=True))


def test_keras_weights_come_back_with_our_standardisation(tmp_path):
    network, path = trained(), tmp_path / "model.weights.h5"
    registry.write(network, path)
    again = keras_file.read(path)
    assert all((a == b).all() for a, b in zip(again.weights(), network.weights(), strict=True))
    assert (again.mean == network.mean).all() and (again.std == network.std).all()
    assert (again.shape, again.classes) == (SHAPE, CLASSES)


def test_weights_of_keras_2(tmp_path):
    network, path = trained(), tmp_path / "old.weights.h5"
    with h5py.File(path, "w") as file:
        for number, (W, b) in enumerate(network.layers):
            name = f"dense_{number}" if number else "dense"
            file[f"{name}/{name}/kernel:0"], file[f"{name}/{name}/bias:0"] = W, b
    again = keras_file.read(path)
    assert all((a == b).all() for a, b in zip(again.weights(), network.weights(), strict=True))


def test_keras_layers_that_are_not_dense(tmp_path):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"], file["layers/conv2d/vars/1"] = np.zeros((3, 3, 1, 8)), np.zeros(8)
    with pytest.raises(InputError, match="only Dense layers"):
        keras_file.read(tmp_path / "a.weights.h5")
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(InputError, match="not a file of Keras weights"):
        keras_file.read(tmp_path / "b.keras")


def test_layers_that_do_not_follow_one_another():
    with pytest.raises(InputError, match=r"layer 1 has weights \(8, 5\) and biases \(5,\) behind a layer of 9"):
        chained([(np.zeros((12, 9)), np.zeros(9)), (np.zeros((8, 5)), np.zeros(5))], "file")


def test_names_that_are_no_format(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.onnx or \.safetensors or \.weights\.h5"):
        registry.write(trained(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="there is no folder"):
        registry.write(trained(), tmp_path / "absent" / "model.onnx")
