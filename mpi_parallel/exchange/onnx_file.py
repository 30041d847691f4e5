"""ONNX: the network as a graph that takes raw pixels, the standardisation as its first nodes."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpi_parallel.exchange.trained import Trained
from mpi_parallel.options import InputError

OPSET, IR = 17, 8  # of 2022: what runs graphs today reads these
INSIDE = 1 << 30  # bytes of weights from which on they go to a file beside, as a message of protobuf ends at 2 GiB


def write(trained: Trained, path: Path) -> None:
    """Write the graph: `images` (N, *shape) float32 of raw pixels to `logits` and `probabilities` (N, classes).

    Raises InputError where the package onnx is not installed.
    """
    try:
        import onnx  # here, because only who exports needs it
    except ImportError:
        raise InputError(f"--to {path}: ONNX needs a package: pip install 'mpi_parallel[export]'") from None
    graph, constants = _graph(trained, onnx)
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="mpi_parallel",
    )
    facts = {**trained.facts, **({"classes": json.dumps(trained.classes)} if trained.classes else {})}
    onnx.helper.set_model_props(model, dict(facts))
    beside = sum(array.nbytes for array in trained.weights()) > INSIDE
    _add(model.graph, constants, path.with_name(path.name + ".data") if beside else None, onnx.TensorProto)
    if not beside:
        onnx.checker.check_model(model)
    onnx.save_model(model, path)


def _add(graph: Any, constants: dict[str, NDArray[np.float32]], beside: Path | None, kind: Any) -> None:
    """Give the graph its constants, or write them to a file beside: one is copied at a time, and none for a file."""
    with beside.open("wb") if beside else nullcontext() as file:
        for name, array in constants.items():
            tensor, values = graph.initializer.add(), np.ascontiguousarray(array, "<f4")
            tensor.name, tensor.data_type = name, kind.FLOAT
            tensor.dims.extend(values.shape)
            if file is None or beside is None:
                tensor.raw_data = values.tobytes()
                continue
            tensor.data_location = kind.EXTERNAL
            for key, value in {"location": beside.name, "offset": file.tell(), "length": values.nbytes}.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = key, str(value)
            file.write(values.reshape(-1).data)


def _graph(trained: Trained, onnx: Any) -> tuple[Any, dict[str, NDArray[np.float32]]]:
    """The graph without its constants, and these by their names."""
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    constants: dict[str, NDArray[np.float32]] = {}
    nodes = [node("Flatten", ["images"], ["x"], "flatten")]
    last = "x"
    if trained.mean is not None and trained.std is not None:
        constants |= {
            "mean": trained.mean.astype(np.float32),
            "inverse_std": (1 / trained.std).astype(np.float32),
        }
        nodes += [node("Sub", [last, "mean"], ["centred"], "centre"),
                  node("Mul", ["centred", "inverse_std"], ["standard"], "scale")]  # fmt: skip
        last = "standard"
    for number, (W_IO, b_O) in enumerate(trained.layers):
        constants |= {f"W{number}": W_IO, f"b{number}": b_O}
        end = number == len(trained.layers) - 1
        out = "logits" if end else f"z{number}"
        nodes.append(node("Gemm", [last, f"W{number}", f"b{number}"], [out], f"dense{number}"))
        if not end:
            nodes.append(node("Relu", [out], [f"y{number}"], f"relu{number}"))
            last = f"y{number}"
    nodes.append(node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1))
    kind, classes = onnx.TensorProto.FLOAT, trained.widths[-1]
    graph = onnx.helper.make_graph(
        nodes,
        "mpi_parallel",
        [tensor("images", kind, ["N", *trained.image_shape])],
        [tensor(name, kind, ["N", classes]) for name in ("logits", "probabilities")],
    )
    return graph, constants
