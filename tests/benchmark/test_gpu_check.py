"""The program behind `make gpu-check`: it runs to its end without a GPU, and loses nothing to a part that fails."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.once import once

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu_check import Part, json_lines, run  # noqa: E402
from gpu_table import table  # noqa: E402


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
    assert [told["agrees"] for told in parts["parity with the CPU"]["figures"]] == [True] * 4
    done = [name for name, part in parts.items() if part["status"] == "done"]
    assert any("2 ranks on one GPU" in name for name in done)
    assert all(parts[name]["figures"]["step_seconds"] > 0 for name in done if name.startswith("ours"))
    shown = kept.with_suffix(".md").read_text()
    assert "| parity with the CPU: bfloat16 | done, 0.0e+00 apart" in shown
    assert "left out: /usr/bin/false has no torch" in shown


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

    def test_that_would_end_too_late_does_not_begin(self):
        assert self.taken(["false"], left=1)["why"] == "no time was left"

    def test_that_says_nothing_of_use_has_failed(self):
        told = self.taken(python("print('{not json')"))
        assert (told["status"], told["why"][:20]) == ("failed", "its output is not wh")

    def test_has_its_lines_in_the_table(self):
        told = {"status": "failed", "why": "status 1", "seconds": 3.0}
        peer = {"status": "done", "seconds": 9.0, "figures": [
            {"way": "eager", "step_seconds": 1e-4}, {"way": "graph", "error": "RuntimeError: out of memory\nmore"},
        ]}  # fmt: skip
        best = {"status": "done", "seconds": 5.0, "figures": {
            "step_seconds": 2e-5, "samples_per_second": 1.28e7, "step_gflops": 5e5, "matmul_gflops": 6.5e5,
        }}  # fmt: skip
        machine = {
            "hardware": {"gpus": ["Some GPU, 80 GiB"], "cpu": "Some CPU", "cores": 8},
            "versions": {"numpy": "2"},
        }
        shown = table(
            {"date": "2026-01-02", **machine, "parts": {"one": told, "torch": peer, "ours": best}}
        ).splitlines()
        assert shown[-4:] == [
            "| one | failed: status 1 |  |  |  | 3 |",
            "| torch: eager | done | 100.0 |  |  | 9 |",
            "| torch: graph | RuntimeError: out of memory |  |  |  | 9 |",
            "| ours | done | 20.0 | 12,800,000 | 77% of 650 TFLOP/s | 5 |",
        ]
