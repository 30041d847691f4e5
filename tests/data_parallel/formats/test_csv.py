"""CSV: numbers in all spellings, lines of all kinds, and what is no table at all."""

import gzip
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mpi_parallel.data_parallel.formats import csv_table, numbers
from mpi_parallel.data_parallel.formats.csv_table import CsvSource
from mpi_parallel.data_parallel.formats.source import Source, SourceOptions, Units, share
from mpi_parallel.data_parallel.labels import Labels
from mpi_parallel.options import InputError
from tests.once import once

pytestmark = once

OPTIONS = SourceOptions()


def read(path, options=OPTIONS, size: int = 1):
    """All rows of a CSV file as `size` ranks read them, in order of their units."""
    source = CsvSource(path, options)
    pieces = sorted(
        ((unit, piece) for rank in range(size) for unit, piece in source.pieces(share([source], size, rank)[0])),
        key=lambda each: each[0],
    )
    starts = np.cumsum([0, *(piece.total for _, piece in pieces)])
    bad = [
        (source.where(start + row), why) for start, (_, p) in zip(starts, pieces, strict=False) for row, why in p.bad
    ]
    images = np.concatenate([piece.images for _, piece in pieces])
    return images, np.concatenate([piece.labels for _, piece in pieces]), bad


@given(st.lists(st.lists(st.integers(0, 999), min_size=3, max_size=3), min_size=1, max_size=30), st.booleans())
def test_pixels_are_read_as_int_would(rows, crlf):
    text = "".join(",".join(map(str, row)) + "\n" for row in rows).encode()
    table = numbers.parse_pixels(text, len(rows), 3, b",")
    assert (table is not None) == (max(map(max, rows)) <= 255)
    if table is not None:
        assert table.tolist() == rows
    tables, bad = numbers.parse_table(text.splitlines(keepends=True), 3, b",")
    assert np.concatenate(tables).tolist() == rows and not bad


@given(st.text('0123456789,.-\n "ex', max_size=60))
def test_pixels_are_never_read_from_anything_else(text):
    lines = text.split("\n")[:-1]
    table = numbers.parse_pixels("".join(line + "\n" for line in lines).encode(), len(lines), 2, b",")
    if table is not None:
        assert table.tolist() == [[int(field) for field in line.split(",")] for line in lines]


@given(
    st.lists(
        st.sampled_from(["1,2,3", "4,5.5,6", "7,,9", "", "1,2", "8,x,9", '"1","2","3"', "1,nan,2"]),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(5, 60),
)
def test_rows_are_the_same_for_1_to_7_ranks(tmp_path_factory, lines, end, packed, unit):
    assume(any(lines))
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    text = end.join(["label,a,b", *lines]).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_table, "UNIT", unit)
        patch.setattr(numbers, "BLOCK", 20)
        images, labels, bad = read(path)
        good = {"1,2,3": [1, 2, 3], "4,5.5,6": [4, 5.5, 6], '"1","2","3"': [1, 2, 3]}
        expected = [good[line] for line in lines if line in good]
        assert np.column_stack([labels, images]).tolist() == expected
        wrong = [number + 2 for number, line in enumerate(lines) if line and line not in good]
        assert [where for where, _ in bad] == [f"{path} line {number}" for number in wrong]
        for size in range(2, 8):
            again = read(path, size=size)
            assert np.array_equal(images, again[0]) and np.array_equal(labels, again[1]) and bad == again[2]


class Fake:
    def __init__(self, units: int | None) -> None:
        self.units = units


@given(st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=5), st.integers(1, 7))
def test_every_unit_has_one_reader(units, size):
    sources: list[Source] = [Fake(count) for count in units]
    shares = [share(sources, size, rank) for rank in range(size)]
    for number, count in enumerate(units):
        for unit in range(9 if count is None else count):
            assert sum(unit in mine[number] for mine in shares) == 1


def test_a_unit_of_a_stream_knows_no_end():
    with pytest.raises(AssertionError):
        list(Units(None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\0\1\2\3,2\n", "holds binary data: neither CSV, IDX, NPZ nor HDF5"),
        ("label,a\n1,2\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b"label,a\r1,2\r3,4\r", "end with a carriage return alone"),
        (b'label,"a\nb"\n1,2\n', "its first line cannot be read: it has a quote that is not closed"),
        (b"\n1,2\n", "its first line is empty"),
        (b"alone\n1\n", "the first line has one field"),
        (b"a,b,c\n1,2,3\n", "no column is called label or .*; its columns are a, b, c"),
    ],
)
def test_what_is_no_table(tmp_path, text, message):
    (tmp_path / "a.csv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        CsvSource(tmp_path / "a.csv", OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "kind"}, "--labels kind: .* has no such column; it has 3: label, a, b"),
        ({"labels": "3"}, "--labels 3: .* has no such column"),
        ({"shape": (2, 2)}, "--shape 2 2 is 4 numbers, but .* has 2 a row"),
        ({"delimiter": "ab"}, "--delimiter ab: one character"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    (tmp_path / "a.csv").write_bytes(b"label,a,b\n1,2,3\n")
    with pytest.raises(InputError, match=message):
        CsvSource(tmp_path / "a.csv", SourceOptions(**options))


def test_names_of_pixels_make_squares(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"label,1x1,1x2,2x1,2x2\n1,2,3,4,5\n")
    assert CsvSource(tmp_path / "a.csv", OPTIONS).shape == (2, 2)
    (tmp_path / "a.csv").write_bytes(b"label,width,depth,age,size\n1,2,3,4,5\n")
    assert CsvSource(tmp_path / "a.csv", OPTIONS).shape == (4,)


def test_wide_tables_are_streamed(tmp_path):
    """30 MB of 5,000 columns in the memory of a few blocks."""
    line = b"3," + b",".join([b"127"] * 4999) + b"\n"
    (tmp_path / "wide.csv").write_bytes(line * 1500)
    source = CsvSource(tmp_path / "wide.csv", SourceOptions(header="no"))
    tracemalloc.start()
    rows = sum(len(piece.images) for _, piece in source.pieces(Units(range(source.units))))
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert rows == 1500


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_without_end_is_no_table(tmp_path, monkeypatch, packed):
    """A .gz of 60 kB that would unpack to 60 MB of one line, and the like unpacked."""
    monkeypatch.setattr(csv_table, "LONGEST_LINE", 1 << 20)
    text = b"label,a\n1,2\n" + b"1" * (60 << 20)
    (tmp_path / "a.csv").write_bytes(gzip.compress(text) if packed else text)
    del text
    tracemalloc.start()
    source = CsvSource(tmp_path / "a.csv", OPTIONS)
    with pytest.raises(InputError, match="a line is longer than 1 MiB"):
        list(source.pieces(share([source], 1, 0)[0]))
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()


def test_a_gzip_file_that_ends_early_is_named(tmp_path):
    whole = gzip.compress(b"label,a\n" + b"1,2\n" * 100000)
    (tmp_path / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.csv\.gz: damaged gzip file"):
        read(tmp_path / "a.csv.gz")


def test_a_name_of_two_columns_is_no_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"kind,a,kind\n1,2,3\n")
    with pytest.raises(InputError, match=r"--labels kind: .* has 2 such columns: give a position"):
        CsvSource(tmp_path / "a.csv", SourceOptions(labels="kind"))


def test_quotes_are_taken_as_csv_does(tmp_path):
    """What is no number in quotes is neither cut in two nor joined with what follows."""
    lines = ['"1","2"," 3"', '1,"2,3"', '"1,2",3,4', '1,"2"3,4', '1,2"3",4', '1,"2""3",4', '2, "3" ,"4"']
    lines += ['1,2,"3', '3",1,2', '1,2,"' + "7" * 200_000 + '"']
    (tmp_path / "a.csv").write_text("\n".join(["label,a,b", *lines]))
    images, labels, bad = read(tmp_path / "a.csv")
    assert (images.tolist(), labels.tolist()) == ([[2, 3], [3, 4]], [1, 2])
    assert [why for _, why in bad] == [
        "has 2 fields, not 3",
        "field 1 (label) is '1,2', not a number",
        "cannot be read: ',' expected after '\"'",
        *["field 2 (a) is '2\"3\"', not a number", "field 2 (a) is '2\"3', not a number"],
        *["cannot be read: it has a quote that is not closed on its line"] * 2,
        "cannot be read: field larger than field limit (131072)",
    ]


def test_quotes_beside_labels_that_are_names(tmp_path):
    (tmp_path / "a.csv").write_text('a,label,b\n"1","ant, red",2\n"1,5",bee,3\n4,bee,"5"\n')
    images, labels, bad = read(tmp_path / "a.csv")
    assert (images.tolist(), labels.tolist()) == ([[1, 2], [4, 5]], ["ant, red", "bee"])
    assert [why for _, why in bad] == ["field 1 (a) is '1,5', not a number"]


def test_labels_that_are_no_text_do_not_become_one_class(tmp_path):
    """In Latin-1 each letter would be the same unknown one; HDF5 takes no NUL in a name."""
    (tmp_path / "a.csv").write_bytes(b"label,a\nant,1\n\xe9,2\n\xe7,3\n" + b"bee,4\n" * 50_000 + b"b\0e,5\n")
    _, labels, _ = read(tmp_path / "a.csv")
    codes, unknown = Labels(named=True).encode(labels)
    assert np.flatnonzero(codes < 0).tolist() == [1, 2, 50_003] and set(codes[codes >= 0].tolist()) == {0, 1}
    assert [why for _, why in unknown] == [
        f"label {name!r} is no text in UTF-8" for name in ("\udce9", "\udce7", "b\0e")
    ]


@pytest.mark.parametrize("ignore", [("id", "note"), ("0", "-1"), ("note", "0")])
@pytest.mark.parametrize(("label", "named"), [("3", False), ("owl", True)])
@pytest.mark.parametrize("note", ["7", "9e99", "hm", '"a, b"', ""])
def test_ignored_columns_may_hold_anything(tmp_path, ignore, label, named, note):
    path = tmp_path / "a.csv"
    path.write_text(f"id,p1,label,p2,note\n1,10,{label},20,{note}\nx-2,30,{label},40,{note}\n3,x,{label},40,{note}\n")
    images, labels, bad = read(path, SourceOptions(ignore=ignore))
    assert images.tolist() == [[10, 20], [30, 40]]
    assert labels.tolist() == [label if named else 3] * 2
    assert bad == [(f"{path} line 4", "field 2 (p1) is 'x', not a number")]


def test_without_what_is_ignored_pixels_make_a_square(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,label,pixel1,pixel2,pixel3,pixel4\n700,1,2,3,4,5\n")
    assert CsvSource(path, SourceOptions(ignore=("id",))).shape == (2, 2)
    images, labels, _ = read(path, SourceOptions(ignore=("id",)))
    assert (images.tolist(), labels.tolist()) == ([[[2, 3], [4, 5]]], [1])


@pytest.mark.parametrize(
    ("ignore", "why"),
    [
        (("label",), "--ignore label: one of these is the labels' column"),
        (("nose",), "--ignore nose: .* has no such column"),
        (("a", "b"), "--ignore leaves no column for images"),
    ],
)
def test_what_cannot_be_ignored(tmp_path, ignore, why):
    path = tmp_path / "a.csv"
    path.write_text("label,a,b\n1,2,3\n")
    with pytest.raises(InputError, match=why):
        CsvSource(path, SourceOptions(ignore=ignore))
