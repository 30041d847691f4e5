"""kernels/cuda.cu compiled by NVRTC for every generation of GPUs, without one: no warning, no spilled register."""

import ctypes
import importlib.util
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mpi_parallel.device.cuda_kernels import OPTIONS, source
from tests.lacking import lacking
from tests.once import once

# V100, where the toolkit still has it, else T4; A100, H100, B200, RTX 50.
PROPERTIES = re.compile(r"Function properties for (\w+)\W+\w*\W+(\d+) bytes stack .* (\d+) bytes spill stores, (\d+)")
GENERATIONS = (80, 90, 100, 120)
# CuPy asks for these by itself (14.2): subnormal float32 numbers count as 0, which none of our tolerances sees.
BY_CUPY = "-ftz=true", "--device-as-default-execution-space"


class NVRTC:
    """The run-time compiler of CUDA, through ctypes."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))

    def architectures(self) -> list[int]:
        """What it compiles for."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", numbers)
        return list(numbers)

    def compile(self, code: str, *options: str) -> str:
        """The log, which with -v also tells of registers; raises AssertionError with it where there are errors."""
        return self.compiled(code, *options)[0]

    def compiled(self, code: str, *options: str) -> tuple[str, str]:
        """The same log, and the PTX, which is empty where an architecture's own code is asked for."""
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), code.encode(), b"cuda.cu", 0, None, None)
        texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = self.library.nvrtcCompileProgram(program, len(options), texts)
        size = ctypes.c_size_t()
        self._call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._call("nvrtcGetProgramLog", program, log)
        ptx = ctypes.create_string_buffer(b"", 1)
        if status == 0 and self.library.nvrtcGetPTXSize(program, ctypes.byref(size)) == 0:
            ptx = ctypes.create_string_buffer(size.value)
            self._call("nvrtcGetPTX", program, ptx)
        self._call("nvrtcDestroyProgram", ctypes.byref(program))
        assert status == 0, log.value.decode()
        return log.value.decode(), ptx.value.decode()

    def _call(self, name: str, *arguments: object) -> None:
        assert getattr(self.library, name)(*arguments) == 0, name


@pytest.fixture(scope="module")
def nvrtc() -> NVRTC:
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = sorted(path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so.*"))
    if not found:
        lacking("no NVRTC here: the wheel nvidia-cuda-nvrtc-cu12 brings one")
    return NVRTC(found[0])


@once
def test_every_kernel_compiles_for_every_generation_without_spills(nvrtc):
    known = nvrtc.architectures()
    compiled = [max(70, known[0]), *(number for number in GENERATIONS if number in known)]
    assert 80 in compiled
    assert 90 in compiled
    options = [(f"--gpu-architecture=sm_{number}", "--ptxas-options=-v", *OPTIONS, *BY_CUPY) for number in compiled]
    with ThreadPoolExecutor(2) as threads:
        logs = list(threads.map(lambda chosen: nvrtc.compile(source(), *chosen), options))
    for number, log in zip(compiled, logs, strict=True):
        assert "cuda.cu(" not in log  # where a warning would be
        told = PROPERTIES.findall(log)
        assert len([kernel for kernel, *_ in told if not kernel.startswith("__")]) == 66  # the others are CUDA's
        assert [kernel for kernel, *numbers in told if numbers != ["0", "0", "0"]] == [], f"sm_{number}"


@once
def test_a_mistake_is_told(nvrtc):
    with pytest.raises(AssertionError, match="undefined_thing"):
        nvrtc.compile(source() + "\nint x = undefined_thing;", "--gpu-architecture=sm_80")


@once
def test_what_memory_decides_on_asks_for_several_elements_at_a_time(nvrtc):
    """A store between two loads holds the second up until it is known that they are not of the same place."""
    _, ptx = nvrtc.compiled(source(), "--gpu-architecture=compute_90", *OPTIONS)
    loads = {"adam": 4, "momentum": 3, "sgd": 2, "narrow_bf16": 1, "check": 1, "relu_gradient_bf16": 2}
    for kernel, of_an_element in loads.items():
        body = ptx.split(f".entry {kernel}(", 1)[1].split(".entry", 1)[0]
        runs = [run.count("ld.global") for run in body.split("st.global")]
        assert max(runs) >= 4 * of_an_element, kernel
