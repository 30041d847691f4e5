"""What MkDocs does beside rendering pages: their order, and the reference, which is made from the code."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import mpi4py

mpi4py.rc.initialize = False  # documentation needs no MPI that runs

from mkdocs.structure.files import File, Files  # noqa: E402

from mpi_parallel.commands import COMMANDS, examples  # noqa: E402
from mpi_parallel.options import flag  # noqa: E402

# Pages in the order in which one reads them; those that are not listed here come last.
ORDER = (
    "index", "tutorial", "data", "three-modules", "performance", "gpus", "slurm", "reproducibility", "faults",
    "after-training", "doctor", "pictures", "reference", "extending",
)  # fmt: skip

# What one builds with in Python, by module.
API = {
    "classifier": ["Classifier"],
    "nn.layers": ["Linear", "Dropout", "Sequential"],
    "nn.store": ["Parameter", "ParameterStore"],
    "nn.mlp": ["MLP"],
    "nn.optimizers": ["Optimizer", "SGD", "Momentum", "Adam", "AdamW", "LAMB"],
    "device.workspace": ["Workspace"],
    "device.clock": ["Clock"],
    "mpi.communicator": ["Communicator"],
    "mpi.process_grid": ["ProcessGrid"],
    "data_parallel.dataset": ["open_image_set"],
    "data_parallel.loader": ["TrainingRows", "Batch"],
    "data_parallel.replica": ["Replica"],
    "model_parallel.pipeline": ["PipelineStage"],
    "model_parallel.tensor": ["ColumnParallelLinear", "RowParallelLinear"],
    "result_merging.merger": ["Merger"],
    "training.step": ["train_step"],
    "pictures.records": ["Record"],
}


def on_files(files: Files, config: Any) -> Files:
    """Add the reference to the pages, and put them in their order."""
    files.append(File.generated(config, "reference.md", content="\n".join(reference())))
    names = {Path(file.src_uri).stem: file.src_uri for file in files.documentation_pages()}
    known = [name for name in ORDER if name in names]
    config["nav"] = [names[name] for name in (*known, *sorted(set(names) - set(known)))]
    return files


def reference() -> Iterator[str]:
    """The page, made from the same declarations as the command line itself."""
    yield "# Reference\n\nMade from the code. Every command also takes `--help` and `--config FILE.toml`.\n"
    yield "## Commands\n"
    for name, command in COMMANDS.items():
        yield f"### {name}\n\n{command.sentence}\n"
        yield from ("    " + line for line in examples(name))
        yield from _options(command.kind)
    yield "## Python\n\nArrays are named with their shapes: B rows of a batch, I inputs, O outputs, K classes.\n"
    for module, names in API.items():
        for name in names:
            yield from _described(f"mpi_parallel.{module}", name)


def _options(kind: Any) -> Iterator[str]:
    """A table of a configuration's options, a group at a time."""
    hints = inspect.get_annotations(kind, eval_str=True)
    for group in dataclasses.fields(kind):
        yield f"\n**{group.name}**: {hints[group.name].__doc__}\n\n| option | default | |\n| --- | --- | --- |"
        for field in dataclasses.fields(hints[group.name]):
            told = field.metadata
            word = told["name"] if told["positional"] else f"{flag(field.name)} {_value(field)}".strip()
            yield f"| `{word}` | {_default(field)} | {_cell(told['sentence'])} |"
    yield ""


def _value(field: Any) -> str:
    """What stands behind a flag: its choices, or its placeholder; nothing behind one that is on or off."""
    if field.type.startswith("bool"):
        return ""
    return "|".join(field.metadata["choices"]) or str(field.metadata["name"])


def _default(field: Any) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None or field.default == ():
        return ""
    if isinstance(field.default, bool):
        return "on; `--no-…` is off" if field.default else "off"
    words = field.default if isinstance(field.default, tuple) else [field.default]
    return f"`{' '.join(map(str, words))}`"


def _described(module: str, name: str) -> Iterator[str]:
    """A class or a function with what its docstrings say."""
    thing = getattr(import_module(module), name)
    yield f"### {name}\n\n`from {module} import {name}`\n\n    {name}{_signature(thing)}\n"
    yield f"{_text(inspect.getdoc(thing))}\n"
    for method, value in sorted(vars(thing).items()) if inspect.isclass(thing) else ():
        if inspect.isfunction(value) and value.__doc__ and not method.startswith("_"):
            yield f"- `{method}{_signature(value)}`: {_text(' '.join((inspect.getdoc(value) or '').split()))}"
    yield ""


def _signature(thing: Any) -> str:
    """Its arguments without the types, which the docstrings tell with their shapes."""
    plain = [p.replace(annotation=p.empty) for p in inspect.signature(thing).parameters.values() if p.name != "self"]
    return str(inspect.Signature(plain))


def _text(docstring: str | None) -> str:
    return (docstring or "").replace("<", "&lt;")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
