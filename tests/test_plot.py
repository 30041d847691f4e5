"""`python -m mpi_parallel.plot`: which files it writes, and what it refuses."""

import json

import pytest

from mpi_parallel.options import InputError
from mpi_parallel.plot import main
from tests.assembly import ALONE
from tests.once import once
from tests.pictures.conftest import run

pytestmark = once

__all__ = ["run"]


def plot(*arguments):
    return main(ALONE, [str(word) for word in arguments])


def test_all_pictures_of_a_run(run, capsys):
    record = run(pipe=2)
    assert plot(record.path) == 0
    written = [record.path / "pictures" / f"{name}.png" for name in
               ("curves", "confusion", "weights", "time", "pipeline", "timeline")]  # fmt: skip
    assert capsys.readouterr().out.split() == list(map(str, written))
    assert all(path.exists() for path in written)


def test_curves_of_several_runs(run, tmp_path):
    assert plot(run("a").path, run("b").path, "--to", tmp_path / "both.svg") == 0
    assert b"b: validation" in (tmp_path / "both.svg").read_bytes()


@pytest.mark.parametrize("name", ["page.html", "curves.png"])
def test_a_folder_that_is_not_there_is_made(run, tmp_path, name):
    assert plot(run().path, "--to", tmp_path / "new" / "one" / name) == 0
    assert [path.name for path in (tmp_path / "new" / "one").iterdir()] == [name]


@pytest.mark.parametrize("name", ["page.html", "curves.png"])
def test_a_folder_that_cannot_be_made_is_told(run, tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=rf"file/{name}: cannot be written"):
        plot(run().path, "--to", tmp_path / "file" / name)


def test_one_picture_by_its_name(run, tmp_path):
    assert plot(run().path, "--picture", "timeline", "--step", 1, "--to", tmp_path / "x.png") == 0
    assert (tmp_path / "x.png").exists()


def test_a_page(run, tmp_path):
    assert plot(run().path, "--to", tmp_path / "page.html") == 0
    assert "Learning curves" in (tmp_path / "page.html").read_text()


def test_scaling_of_benchmarks(tmp_path):
    for ranks in (1, 2):
        figures = {"ranks": ranks, "step_seconds": 1.0, "samples_per_second": 100.0 * ranks}
        (tmp_path / f"{ranks}.json").write_text(json.dumps(figures))
    assert plot(tmp_path / "1.json", tmp_path / "2.json", "--to", tmp_path / "scaling.png") == 0
    assert (tmp_path / "scaling.png").exists()


def test_what_it_refuses(run, tmp_path):
    record = run(without=("trace",))
    for arguments, complaint in [
        ([], "RUN is missing"),
        ([tmp_path / "absent"], "absent is not the folder of a run"),
        ([record.path, "--to", tmp_path / "a.gif"], r"pictures are .png or .svg, pages .html"),
        ([record.path, record.path, "--to", tmp_path / "a.html"], "a page shows one run, and 2 were named"),
        ([record.path, record.path, "--picture", "time"], "--picture time is of one run, and 2 were named"),
        ([record.path, "--picture", "timeline"], "has no trace: train with --trace"),
        ([record.path, "--picture", "curve"], "curve"),
    ]:
        with pytest.raises(InputError, match=complaint):
            plot(*arguments)
