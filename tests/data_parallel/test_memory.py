"""The memory for rows: how much of it there is, and one copy for several ranks."""

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.data_parallel.loader import TrainingRows
from mpi_parallel.data_parallel.memory import SHARE, Budget, Shared, available, budget_of
from mpi_parallel.data_parallel.rows import bytes_of_row
from mpi_parallel.device import Host
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options.values import bytes_of, memory_size
from tests.assembly import ALONE, world
from tests.device.strict import Strict
from tests.samples import write_image_set


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 2**29), ("2g", 2**31), ("1.5 K", 1536), ("7", 7), ("1GiB", 2**30), ("3MB", 3 << 20), ("1T", 2**40)],
)
def test_sizes(text, size):
    assert memory_size(text) is None
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "M", "much", "-1G", "0", "nan", "inf", "1e999", "5X"])
def test_what_is_no_size_is_refused(text):
    assert memory_size(text) is not None


class TestAvailable:
    def files(self, folder, cgroup, **limits):
        (folder / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\nSwapFree: 0 kB\n")
        (folder / "cgroup").write_text(cgroup)
        for name, value in limits.items():
            path = folder / "sys" / name.replace("__", "/").replace("_of_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        return available(folder / "meminfo", folder / "cgroup", folder / "sys")

    def test_of_the_node(self, tmp_path):
        assert self.files(tmp_path, "0::/\n") == 4000 << 10

    def test_of_the_control_group(self, tmp_path):
        limits = {"job__memory_of_max": 3_000_000, "job__memory_of_current": 1_000_000}
        assert self.files(tmp_path, "0::/job/step\n", **limits) == 2_000_000

    def test_of_a_control_group_of_the_first_version(self, tmp_path):
        limits = {"memory__job__memory_of_limit_in_bytes": 900_000, "memory__job__memory_of_usage_in_bytes": 1_000_000}
        assert self.files(tmp_path, "4:memory:/job\n", **limits) == 0

    def test_without_a_limit(self, tmp_path):
        limits = {"job__memory_of_max": "max", "job__memory_of_current": 1_000_000}
        assert self.files(tmp_path, "0::/job\n3:cpuset:/\n", **limits) == 4000 << 10

    def test_here(self):
        assert available() > 2**20


@pytest.mark.parallel([1, 2, 3, 4])
def test_the_ranks_of_a_node_divide_the_budget():
    comm = world()
    node = comm.node()
    asked = budget_of(DataOptions(data="x", memory="512M", window="8M", holding="streaming"), node, Host())
    assert asked == Budget(2**29 / node.size, "streaming", 2**23)
    default = budget_of(DataOptions(data="x"), node, Host())
    assert 0 < default.bytes <= SHARE * 1.1 * available() / node.size + 2**28


@pytest.mark.parallel([1, 2, 3, 4])
def test_one_array_for_all_ranks():
    node = world().node()
    shared = Shared(node, (node.size, 3), np.dtype(np.uint16))
    shared.array[node.rank] = node.rank + 5
    shared.settle()
    assert shared.array.tolist() == [[rank + 5] * 3 for rank in range(node.size)]
    shared.settle()
    shared.free()


@pytest.mark.parallel([2, 3, 4])
def test_peers_keep_one_copy_of_the_same_rows(shared_path):
    """As in a grid of one data rank by many: all need all rows, each reads some of them, and all see all."""
    path = write_image_set(shared_path / f"{MPI.COMM_WORLD.rank}.h5", train=61)
    data = open_image_set(DataOptions(data=str(path)), 0, ALONE)
    peers = Communicator(MPI.COMM_WORLD)
    read, own = [], type(data.train).read
    try:
        type(data.train).read = lambda split, part, *to: [read.append(part), own(split, part, *to)][1]
        together = TrainingRows(data, 8, 0, ALONE, Host(), peers=peers)
    finally:
        type(data.train).read = own
    alone = TrainingRows(data, 8, 0, ALONE, Host())
    assert len(read) == len(range(peers.rank, 8, peers.size))
    assert np.array_equal(together.rows.images, alone.rows.images)
    assert np.array_equal(together.rows.labels, alone.rows.labels)
    assert np.array_equal(together.scaler.mean, alone.scaler.mean)
    assert together.bytes == alone.bytes // peers.size


@pytest.mark.parallel([1, 2])
def test_a_device_with_memory_of_its_own_has_all_of_them_as_wide_as_it_needs(shared_path):
    """Its ranks share no copy with others, and the host keeps none."""
    path = write_image_set(shared_path / f"set-{world().rank}.h5", train=40, dtype=np.int8)
    data, device = open_image_set(DataOptions(data=str(path)), 0, ALONE), Strict()
    for readable, width in ((None, 1), ({np.dtype(np.int8)}, 1), ({np.dtype(np.uint8)}, 4)):
        device.kernels.file_types = readable
        training = TrainingRows(data, 4, 0, ALONE, device, peers=world())
        assert training.bytes == 40 * (12 * width + 4)
        assert training.rows.images.dtype.itemsize == width
        assert not training._shared
        training.free()
        assert bytes_of_row(data.train, Host()) == 12 + 4
