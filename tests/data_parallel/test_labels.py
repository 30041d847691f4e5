"""Names of classes: what files and options call them, and what several files together mean by a number."""

import h5py
import numpy as np
import pytest

from mpi_parallel.data_parallel.labels import class_names
from mpi_parallel.options import InputError
from tests.data_parallel.test_conversion import content, pixels, run
from tests.once import once

pytestmark = once


def write(path, classes, named=False) -> None:
    images, labels = pixels(30)
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = images, np.array(classes, object)[labels] if named else labels
        file.attrs["classes"] = classes


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["ant", "bée"], ("ant", "bée")),
        (np.array([b"ant", b"b\xff"]), ("ant", r"b\xff")),
        (np.array([b"ant", b"b\xff"], h5py.string_dtype()), ("ant", r"b\xff")),
        ("ant", ("ant",)),
        (3, None),  # how many there are
        (np.arange(3), None),
        (h5py.Empty("S1"), None),
        ([], None),
    ],
)
def test_names_are_text(tmp_path, value, names):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["classes"] = value
        assert class_names(file) == names


def test_a_number_means_the_same_class_in_all_sources(tmp_path):
    write(tmp_path / "a.h5", ["ant", "bee", "owl"])
    write(tmp_path / "b.h5", ["owl", "bee", "ant"])
    with pytest.raises(InputError, match=r"are ant, bee, owl in .*a\.h5, but owl, bee, ant in .*b\.h5"):
        run(tmp_path / "a.h5", tmp_path / "b.h5", "--to", tmp_path / "c.h5")
    images, labels = pixels(30)
    np.savez(tmp_path / "a.npz", x=images, y=labels)  # which gives no names
    run(tmp_path / "a.npz", tmp_path / "a.h5", tmp_path / "a.h5", "--to", tmp_path / "c.h5")
    assert content(tmp_path / "c.h5")["@classes"].tolist() == ["ant", "bee", "owl"]


def test_names_as_labels_may_be_in_any_order(tmp_path):
    write(tmp_path / "a.h5", ["owl", "bee", "ant"], named=True)
    run(tmp_path / "a.h5", "--to", tmp_path / "c.h5", "--split", 1)
    assert content(tmp_path / "c.h5")["@classes"].tolist() == ["owl", "bee", "ant"]
    write(tmp_path / "b.h5", ["ant", "cow", "owl"], named=True)
    run(tmp_path / "a.h5", tmp_path / "b.h5", "--to", tmp_path / "c.h5", "--split", 1)
    arrays, (_, labels) = content(tmp_path / "c.h5"), pixels(30)
    assert arrays["@classes"].tolist() == ["ant", "bee", "cow", "owl"] and arrays["@rows_left_out"] == 0
    np.testing.assert_array_equal(arrays["train/labels"], [*np.array([3, 1, 0])[labels], *np.array([0, 2, 3])[labels]])


def test_two_classes_of_one_name(tmp_path):
    write(tmp_path / "a.h5", ["ant", "bee", "owl"], named=True)
    with pytest.raises(InputError, match="'bee' is the name of two classes"):
        run(tmp_path / "a.h5", "--to", tmp_path / "c.h5", "--classes", "ant", "bee", "bee")
