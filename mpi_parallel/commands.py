"""The commands: where the options of each are declared, and lines to begin with. `--help`, completion and the
reference in docs/ are made from this table."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command, such as `train` or `benchmark step`."""

    config: str  # "module:dataclass" of its options, under mpi_parallel
    examples: str  # lines to begin with, where {command} stands for itself; behind three spaces a comment
    sentence_in: str = ""  # the module that says in SENTENCE what it is for, where the options are declared elsewhere

    @property
    def kind(self) -> Any:
        """The dataclass of its options; imports its module."""
        module, _, name = self.config.partition(":")
        return getattr(import_module(f"mpi_parallel.{module}"), name)

    @property
    def sentence(self) -> str:
        """What it is for; imports its module."""
        module = self.sentence_in or self.config.partition(":")[0]
        sentence: str = import_module(f"mpi_parallel.{module}").SENTENCE
        return sentence


COMMANDS: dict[str, Command] = {
    "train": Command(
        "config:TrainConfig",
        """
        mpirun -n 4 {train} --data train.h5                          the article's network, on 4 ranks
        mpirun -n 4 {train} --data train.h5 --hidden 512 256 --epochs 30 --schedule cosine --dropout 0.1
        mpirun -n 8 {train} --data train.h5 --hidden 8192 8192 --pipe 2 --tensor 2    split a model that is too large
        mpirun -n 4 {train} --config runs/first/config.toml --out runs/second --lr 3e-4     again, with one change
        """,
        "train",
    ),
    "convert": Command(
        "convert:ConvertConfig",
        """
        mpirun -n 4 {convert} train.csv --to train.h5                a table with the labels in a column
        mpirun -n 4 {convert} pictures/ --size 64x64 --greyscale --to train.h5        a folder a class
        mpirun -n 4 {convert} scan.h5 --images /entry/data --labels /entry/kind --to train.h5
        """,
    ),
    "inspect": Command(
        "inspect:InspectConfig",
        """
        {inspect} train.h5                                           what is in it
        {inspect} train.h5 --ranks 8 --contact-sheet sheet.png       what 8 ranks will read; some images
        """,
    ),
    "repack": Command(
        "repack:RepackConfig",
        """
        mpirun -n 4 {repack} train.h5 --to packed.h5 --filter gzip
        """,
    ),
    "evaluate": Command(
        "evaluate:EvaluateConfig",
        """
        mpirun -n 2 {evaluate} --checkpoint runs/first --data train.h5             its best checkpoint, the test split
        {evaluate} --checkpoint runs/first --data new.h5 --split all --json figures.json
        """,
    ),
    "predict": Command(
        "predict:PredictConfig",
        """
        mpirun -n 2 {predict} --checkpoint runs/first --data new.h5 --to predictions.h5
        """,
    ),
    "export": Command(
        "export:ExportConfig",
        """
        {export} --checkpoint runs/first --to model.onnx             takes raw pixels
        {export} --checkpoint runs/first --to model.weights.h5       for Keras; .safetensors for PyTorch and others
        """,
    ),
    "plot": Command(
        "plot:PlotConfig",
        """
        {plot} runs/first                                            every picture, into runs/first/pictures
        {plot} runs/first runs/second --to curves.svg                learning curves, compared
        {plot} runs/first --picture pipeline --to pipeline.png       a step of a run with --trace --pipe 4
        {plot} step-1.json step-2.json step-4.json --to scaling.png   of benchmark step --to, by ranks
        """,
    ),
    "verify": Command(
        "verify:VerifyConfig",
        """
        {verify} --ranks 1,2,3,4                                     every grid of so many ranks
        {verify} --ranks 1,2 --launcher 'srun -n {ranks} --mpi=pmix'
        """,
    ),
    "doctor": Command(
        "doctor.__main__:DoctorConfig",
        """
        mpirun -n 4 {doctor}                                         before the first run on a machine
        srun {doctor} --strict --json doctor.json                    in a batch script
        """,
    ),
    "benchmark step": Command(
        "benchmark.step:StepConfig",
        """
        mpirun -n 2 {benchmark step} --to step-2.json                a training step by phase
        """,
    ),
    "benchmark merge": Command(
        "benchmark.merge:MergeConfig",
        """
        mpirun -n 2 {benchmark merge}                                every merger against Allreduce and NumPy
        """,
    ),
    "benchmark scaling": Command(
        "benchmark.scaling:ScalingConfig",
        """
        mpirun -n 2 {benchmark scaling} --hidden 2048 2048           data, tensor and pipeline ranks in turns
        """,
    ),
    "benchmark data": Command(
        "benchmark.data:DataConfig",
        """
        mpirun -n 2 {benchmark data}                                 reading, converting and streaming
        """,
    ),
    "benchmark checkpoint": Command(
        "benchmark.checkpoint:CheckpointConfig",
        """
        mpirun -n 2 {benchmark checkpoint} --folder /scratch/me      what saving costs, on that disk
        """,
    ),
    "benchmark imports": Command(
        "benchmark.imports:ImportConfig",
        """
        {benchmark imports}                                          what importing the program takes
        """,
    ),
    "benchmark peers": Command(
        "benchmark.peers:PeersConfig",
        """
        {benchmark peers} --data train.h5                            whole epochs against JAX and PyTorch
        """,
    ),
}

VERBS = tuple(dict.fromkeys(name.partition(" ")[0] for name in COMMANDS))


def examples(command: str) -> list[str]:
    """The example lines of a command as they are typed, each below a comment where it has one; of others none."""
    lines: list[str] = []
    for line in COMMANDS[command].examples.strip().splitlines() if command in COMMANDS else ():
        typed, _, comment = line.strip().partition("   ")
        lines += [f"# {comment.strip()}"] if comment else []
        lines.append(typed.replace(f"{{{command}}}", f"python -m mpi_parallel.{command}"))
    return lines
