"""Augmentation: each change against its plain definition, and by the key of the row alone."""

import numpy as np
import pytest
from mpi4py import MPI

from mpi_parallel.config.learning import DataOptions
from mpi_parallel.data_parallel.augmentation import augmentation_of
from mpi_parallel.data_parallel.dataset import open_image_set
from mpi_parallel.data_parallel.loader import TrainingRows
from mpi_parallel.data_parallel.memory import Budget
from mpi_parallel.device import Augmentation, Host
from mpi_parallel.device import augmentation as expression
from mpi_parallel.device.workspace import Workspace
from mpi_parallel.options import InputError
from tests.assembly import ALONE, world
from tests.samples import write_image_set

SHAPES = [(6, 5), (6, 5, 3)]
KEYS = np.random.default_rng(0).integers(0, 2**32, 500, dtype=np.uint32)


def of(shape, *how, **named):
    return Augmentation(*(*shape, 1)[:3], *how, **named)


def augmented(how, raw_BF, keys=KEYS):
    changed = expression.augmented(np, raw_BF, keys[: len(raw_BF)], how)
    return changed.reshape(len(raw_BF), how.height, how.width, how.channels)


def images(shape, n=500, dtype=np.uint8):
    """(n, features) without zeros, each different."""
    return np.random.default_rng(1).integers(1, 100, (n, int(np.prod(shape)))).astype(dtype)


def shifted(image_HWC, down, right):
    out = np.zeros_like(image_HWC)
    H, W, _ = image_HWC.shape
    for i in range(H):
        for j in range(W):
            if 0 <= i + down < H and 0 <= j + right < W:
                out[i, j] = image_HWC[i + down, j + right]
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_shift_moves_by_up_to_so_many_pixels_equally_often(shape, dtype):
    raw, augment = images(shape, dtype=dtype), of(shape, shift=2)
    out, times = augmented(augment, raw), np.zeros((5, 5), int)
    assert out.dtype == dtype
    for before, after in zip(raw.reshape(out.shape), out, strict=True):
        ways = [(d, r) for d in range(-2, 3) for r in range(-2, 3) if np.array_equal(shifted(before, d, r), after)]
        assert len(ways) == 1
        times[ways[0][0] + 2, ways[0][1] + 2] += 1
    assert times.min() > 5 and times.max() < 45  # 20 on average


@pytest.mark.parametrize("shape", SHAPES)
def test_flip_mirrors_half_of_the_images_left_to_right(shape):
    raw = images(shape)
    out = augmented(of(shape, flip=True), raw)
    before = raw.reshape(out.shape)
    same, mirrored = ((out == other).all(axis=(1, 2, 3)) for other in (before, before[:, :, ::-1]))
    assert (same | mirrored).all()
    assert 200 < mirrored.sum() < 300


@pytest.mark.parametrize("shape", [(28, 28), (20, 30, 3)])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_erase_puts_rectangles_to_zero(shape, share):
    raw = images(shape)
    out = augmented(of(shape, erase=share), raw)
    erased = out != raw.reshape(out.shape)
    assert not out[erased].any()
    assert (erased == erased[..., :1]).all()  # all colours of a pixel
    chosen = erased.any(axis=(1, 2, 3))
    assert abs(chosen.mean() - share) < 0.07
    for mask in erased[chosen][..., 0]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    areas = erased[chosen][..., 0].mean(axis=(1, 2))
    assert areas.min() > 0.01 and areas.max() < 0.4 and areas.max() > 0.25


def test_depends_on_the_key_alone():
    raw, augment = images((6, 5), 40), of((6, 5), 2, True, 0.5)
    whole, parts = augmented(augment, raw), [augmented(augment, raw[i : i + 1], KEYS[i:]) for i in range(40)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, augmented(augment, raw, KEYS[1:]))


def test_nothing_is_asked_for_by_default():
    assert augmentation_of(DataOptions(data="x"), (28, 28)) is None


@pytest.mark.parametrize(
    ("shape", "shift", "message"), [((784,), 1, r"want images .* these are \('N', 784\)"), ((6, 5), 5, "out of sight")]
)
def test_what_cannot_be_done_is_refused(shape, shift, message):
    with pytest.raises(InputError, match=message):
        augmentation_of(DataOptions(data="x", shift=shift, flip=True), shape)


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("holding", ["resident", "streaming"])
def test_samples_are_those_of_one_rank_and_differ_between_epochs(shared_path, holding):
    path = write_image_set(shared_path / f"{MPI.COMM_WORLD.rank}.h5")

    def samples(comm, epoch):
        data = open_image_set(DataOptions(data=str(path)), 0, comm)
        budget = Budget(holding=holding, window=2000)
        training = TrainingRows(data, 8, 0, comm, Host(), budget, of(data.shape, 1, True, 0.5))
        ws, found = Workspace(Host()), []
        for batch in training.epoch(epoch, 16):
            ws.reset()
            x, t = training.rows.gather(ws, batch.index, batch.keys)
            mine = list(zip(batch.keys.tolist(), x.tolist(), t.tolist(), strict=True))
            found.append(sorted(row for part in comm.comm.allgather(mine) for row in part))
        training.rows.close()
        return found

    assert samples(world(), 1) == samples(ALONE, 1)
    assert samples(ALONE, 0) != samples(ALONE, 1)
