"""What is loaded when, as start-up time is paid by every rank of every job."""

import subprocess
import sys

import pytest

from tests.once import once

HEAVY = (
    "matplotlib", "onnx", "onnxruntime", "pandas", "PIL", "tensorflow", "keras", "torch", "jax", "sklearn", "scipy",
    "safetensors", "cupy", "tensorboard", "tensorboardX", "tqdm", "shtab",
)  # fmt: skip

QUIET = "import mpi4py; mpi4py.rc.initialize = False"  # MPI takes its time to start


@once
@pytest.mark.parametrize(
    ("module", "also"),
    [
        ("mpi_parallel", ("numpy", "h5py", "mpi4py.MPI")),
        ("mpi_parallel.train", ()),
        ("mpi_parallel.evaluate", ()),
        ("mpi_parallel.predict", ()),
        ("mpi_parallel.export", ()),
        ("mpi_parallel.plot", ()),
        ("mpi_parallel.doctor.__main__", ()),
        ("mpi_parallel.classifier", ()),
    ],
)
def test_nothing_heavy_comes_with(module, also):
    code = f"{QUIET}; import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()).isdisjoint({*HEAVY, *also})


def test_the_classifier_comes_when_it_is_asked_for():
    absent = "assert 'mpi_parallel.classifier' not in sys.modules"
    code = f"{QUIET}; import sys, mpi_parallel; {absent}; print(mpi_parallel.Classifier)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "<class 'mpi_parallel.classifier.Classifier'>\n"
