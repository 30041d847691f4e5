"""What is tried in a folder, and what is told of it."""

import pytest
from mpi4py import MPI

from mpi_parallel.doctor import speed, storage
from mpi_parallel.mpi.communicator import Communicator


@pytest.mark.parallel([1, 2, 3])
def test_a_folder_that_serves(shared_path):
    section = storage.check(shared_path, Communicator(MPI.COMM_WORLD))
    assert section.problems == []
    assert (section.facts["locks"], section.facts["seen"], section.facts["mpi_io"]) == ("work", "yes", "works")
    assert section.facts["free_bytes"] > 0
    assert list(shared_path.iterdir()) == []


@pytest.mark.parallel(2)
def test_a_folder_of_one_rank_alone(tmp_path):
    """Each rank's own folder stands for node-local disks."""
    (problem,) = storage.check(tmp_path, Communicator(MPI.COMM_WORLD)).problems
    assert "is not one folder for all ranks: yes on rank 0; no on rank 1" in problem


def test_the_type_of_a_file_system(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path} lustre rw 0 0\nc {tmp_path}/other nfs rw 0 0\n")
    (tmp_path / "others").mkdir()
    assert storage.file_system(tmp_path / "others", mounts) == "lustre"
    assert storage.file_system(tmp_path.parent, mounts) == "ext4"


def test_the_disk_is_measured(tmp_path):
    assert min(speed.write_and_read(tmp_path / "file", 1 << 16)) > 0
