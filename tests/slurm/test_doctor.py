"""doctor under srun, on nodes of a real Slurm."""

import json
import sys

import pytest

from tests.slurm.evidence import MPICH

pytestmark = pytest.mark.slurm
OPEN_MPI = {"SLURM_MPI_TYPE": "pmix", "PMIX_MCA_psec": "native"}
DOCTOR = (sys.executable, "-m", "mpi_parallel.doctor")


@pytest.mark.parametrize("settings", [OPEN_MPI, MPICH], ids=["openmpi", "mpich"])
def test_four_ranks_on_two_nodes(cluster, tmp_path, settings):
    told = json.loads(cluster.run("srun", "-N2", "-n4", *DOCTOR, "--folder", str(tmp_path), "--json", **settings))
    assert (told["status"], told["mpi"]["size"]) == (0, 4)
    assert "srun" in told["mpi"]["launcher"]
    assert told["storage"]["mpi_io"] == "works"
    assert told["clocks"]["skew"] < 0.5


def test_srun_and_an_mpi_that_does_not_fit(cluster, tmp_path):
    """Each task would be alone, and all would write to the same files."""
    with pytest.raises(AssertionError, match=r"the launcher started 4 processes .* but this MPI .* knows of 1"):
        cluster.run("srun", "-n4", "--mpi=pmi2", *DOCTOR, "--folder", str(tmp_path), PMIX_MCA_psec="native")
