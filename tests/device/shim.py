"""kernels/cuda.cu on a CPU: compiled with cuda_shim.h, launched with a grid, a block and parameters as on a GPU."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mpi_parallel.device.cuda_kernels import source
from tests.lacking import lacking

HERE = Path(__file__).parent
TESTS = [
    str(HERE / name) for name in ("test_cuda_kernels.py", "test_cuda_rules.py", "test_cuda_small.py")
]  # of what is compiled here
SANITIZE = "CUDA_SHIM_SANITIZE"  # set in the child process that has AddressSanitizer loaded
RACES = "CUDA_SHIM_RACES"  # set where cuda_races.h looks on
BUILT = "CUDA_SHIM_BUILT"  # where a process finds the library that its parent has built
PLAIN, SANITIZED = ("-O1",), ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
WATCHED = "-O2", "-DRACES", "-fsanitize=thread"
# What Python passes as a parameter, by the letters of cuda_shim.h.
LETTERS = {
    "p": ("uint64", "array"),
    "l": ("int64",),
    "i": ("int32", "uint32"),
    "f": ("float32",),
    "d": ("float64",),
    "v": ("ndarray",),
}


def compiler() -> str:
    """A C++ compiler; the test ends where there is none."""
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return found or lacking("no C++ compiler here: the CUDA kernels are not run on the CPU")


@cache
def shim() -> Shim:
    """The library of this process, which is built once, or was by the one that started it."""
    built = os.environ.get(BUILT)
    if built:
        return Shim(Path(built))
    with tempfile.TemporaryDirectory() as folder:
        flags = SANITIZED if os.environ.get(SANITIZE) else WATCHED if os.environ.get(RACES) else PLAIN
        return Shim(build(Path(folder), flags))


def build(folder: Path, flags: Sequence[str] = PLAIN) -> Path:
    """Compile the kernels with a table of them at the end; the library."""
    code = f'#include "{HERE / "cuda_shim.h"}"\n{source()}\n'
    (folder / "kernels.cpp").write_text(code)
    common = [compiler(), "-std=c++14", "-ffp-contract=off", "-Wall", "-Wno-unused-function", "-Wno-unknown-pragmas"]
    expanded = subprocess.run([*common, "-E", folder / "kernels.cpp"], capture_output=True, text=True, check=True)
    names = re.findall(r'extern "C"\s+void\s+(\w+)\(', expanded.stdout.split("block_sum", 1)[1])
    entries = "".join(f'{{"{n}", letters({n}), [](void **g) {{ unpack({n}, g); }}}},\n' for n in names)
    table = (
        f"static const Entry table[] = {{\n{entries}}};\n"
        "static const Entry *find(const char *name)\n{\n"
        "    for (const Entry &entry : table) if (!strcmp(entry.name, name)) return &entry;\n"
        "    return nullptr;\n}\n"
    )
    (folder / "kernels.cpp").write_text(code + table)
    library, made = folder / "kernels.so", folder / "kernels.o"
    subprocess.run([*common, *flags, "-fPIC", "-c", folder / "kernels.cpp", "-o", made], check=True)
    linking = [flag for flag in flags if flag not in WATCHED]  # what looks on for races is its own library
    subprocess.run([*common, *linking, "-shared", "-Wl,-Bsymbolic", made, "-o", library], check=True)
    return library


class Shim:
    """The kernels by their names."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.types_of.restype = ctypes.c_char_p

    def launch(
        self, name: str, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any], shared: int = 0
    ) -> None:
        """As CuPy does it; arguments of a type other than the parameter's are refused."""
        types = self.library.types_of(name.encode())
        assert types is not None, f"no kernel {name}"
        assert len(types) == len(arguments), f"{name} has {len(types)} parameters, {len(arguments)} are given"
        values = [held(argument, chr(letter), name) for argument, letter in zip(arguments, types, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        sizes = [(ctypes.c_uint * 3)(*(max(1, n) for n in (*size, 1, 1)[:3])) for size in (grid, block)]
        self.library.launch(name.encode(), *sizes, ctypes.c_ulong(shared), pointers)


def held(argument: Any, letter: str, name: str) -> np.ndarray:
    """The bytes that a launch passes: a number, a structure, or the address of an array."""
    address = getattr(argument, "data", None) if hasattr(argument, "nbytes") and hasattr(argument, "ndim") else None
    if address is not None and hasattr(address, "ptr"):
        argument, kind = np.uint64(address.ptr), "array"
    else:
        kind = type(argument).__name__
    assert kind in LETTERS[letter], f"{name}: {kind} for a parameter of type {letter}"
    return np.array([argument])
