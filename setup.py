"""The one thing that setup.cfg cannot say: the compiled kernels. Without a C compiler the package installs, too."""

from pathlib import Path

from setuptools import Extension, setup

kernels = Extension(
    "mpi_parallel.device._kernels",
    sources=["mpi_parallel/device/kernels/module.c"],
    depends=sorted(map(str, Path("mpi_parallel/device/kernels").glob("*.[ch]"))),
    # No contraction: the same bits whichever instruction set runs. Nobody reads errno or traps exceptions.
    extra_compile_args=["-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
    extra_link_args=["-fopenmp"],
    optional=True,
)

setup(ext_modules=[kernels])
