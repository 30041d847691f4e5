"""The IDX reader: good files, and files made to deceive it."""

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mpi_parallel.data_parallel.formats import idx_header, read_idx
from tests.once import once

pytestmark = once

IMAGES_N23 = np.arange(30, dtype=np.uint8).reshape(5, 2, 3)
IMAGES_IDX = idx_header(IMAGES_N23) + IMAGES_N23.tobytes()


@pytest.fixture(params=[False, True], ids=["plain", "gz"])
def write(request, tmp_path):
    """Write bytes as a file, plain or .gz, and return its path."""

    def write_file(content: bytes) -> Path:
        path = tmp_path / "images-idx3-ubyte"  # without .gz: the content tells
        path.write_bytes(gzip.compress(content) if request.param else content)
        return path

    return write_file


def header(code: int, *shape: int) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def test_header_is_that_of_the_published_files():
    images = np.zeros((60000, 28, 28), np.uint8)
    assert idx_header(images).hex() == "00000803" + "0000ea60" + "0000001c" * 2


def test_reads_images(write):
    images = read_idx(write(IMAGES_IDX), ndim=3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, IMAGES_N23)


def test_reads_labels(write):
    assert read_idx(write(header(8, 3) + b"\1\2\3"), ndim=1).tolist() == [1, 2, 3]


@pytest.mark.parametrize(("code", "dtype"), [(0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")])
def test_reads_every_type_into_native_order(write, code, dtype):
    values = np.array([[-1, 2], [3, 100]], dtype)
    read = read_idx(write(header(code, 2, 2) + values.astype(f">{dtype}").tobytes()))
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\x89PNG\r\n\x1a\n", "not an IDX file: it starts with 89 50 4e 47"),
        (header(0x0A, 3) + b"abc", "not an IDX file"),  # a type code that does not exist
        (b"\0\0\x08\0", "not an IDX file"),  # no dimensions
        (b"\0\0\x08\xff" + b"\xff" * 1020, "not an IDX file"),  # 255 of them
        (IMAGES_IDX[:10], "ends within the IDX header"),
        (IMAGES_IDX + b"\0", "too long: bytes follow the 30"),
        (header(8, 0, 28, 28), "declares no items"),
        (header(8, 0, 2**32 - 1, 2**32 - 1), "declares no items"),
    ],
)
def test_refuses_what_is_not_idx(write, content, message):
    path = write(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_refuses_a_truncated_file(tmp_path):
    path = tmp_path / "plain"
    path.write_bytes(IMAGES_IDX[:-1])
    with pytest.raises(ValueError, match="truncated: declares 30 bytes of items, but holds 29"):
        read_idx(path)


def test_refuses_truncated_content_in_a_whole_gzip(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(IMAGES_IDX[:-1]))
    with pytest.raises(ValueError, match="truncated: declares 30 bytes of items, but holds 29"):
        read_idx(path)


@pytest.mark.parametrize(
    "damage", [lambda gz: gz[:-9], lambda gz: gz[:-8] + bytes(8), lambda gz: gz[:10] + b"\xff" * 9]
)
def test_refuses_a_damaged_gzip(tmp_path, damage):
    path = tmp_path / "images.gz"
    path.write_bytes(damage(gzip.compress(IMAGES_IDX)))
    with pytest.raises(ValueError, match="damaged gzip file"):
        read_idx(path)


@pytest.mark.parametrize("shape", [(2**31, 2**10, 2), (2**32 - 1,) * 4])
def test_declared_terabytes_are_not_believed(write, shape):
    path = write(header(8, *shape) + bytes(1000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"declares .* at most"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_memory_grows_with_what_arrives(tmp_path):
    """A gzip file whose size allows what it declares, but whose content is 1,000 bytes."""
    path = tmp_path / "images.gz"
    extra = struct.pack("<H", 60_000) + bytes(60_000)  # an optional field of the gzip header makes the file large
    packed = gzip.compress(header(8, 60_000_000) + bytes(1000))
    path.write_bytes(packed[:3] + b"\x04" + packed[4:10] + extra + packed[10:])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="truncated: declares 60,000,000 bytes of items, but holds 1,000"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_refuses_other_dimensions_than_asked_for(write):
    with pytest.raises(ValueError, match=r"3 dimensions \(5, 2, 3\), but 1 wanted"):
        read_idx(write(IMAGES_IDX), ndim=1)


def test_refuses_a_folder_and_a_device(tmp_path):
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file"):
            read_idx(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent-idx1"):
        read_idx(tmp_path / "absent-idx1")
