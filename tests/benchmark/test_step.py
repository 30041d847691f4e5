"""benchmark step: what it says of a step."""

import json

from tests.launch import launch
from tests.once import once

pytestmark = once


def test_accounts_of_a_step_cost_less_than_one_per_cent_of_it(tmp_path):
    ended = launch(2, "-m", "mpi_parallel.benchmark", "step", "--seconds", 0.5, "--to", tmp_path / "step.json")
    assert (ended.returncode, ended.stderr) == (0, "")
    figures = json.loads((tmp_path / "step.json").read_text())
    assert 0 < figures["accounting_share"] < 0.01
    assert "% of them for these accounts" in ended.stdout
    assert sum(figures["seconds_by_phase"].values()) > 0.5 * figures["step_seconds"]
