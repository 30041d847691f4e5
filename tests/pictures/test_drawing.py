"""Every picture: drawn as PNG and as SVG, with the words that must be in it; or refused with the reason."""

import re

import numpy as np
import pytest

from mpi_parallel.options import InputError
from mpi_parallel.pictures import style
from mpi_parallel.pictures.accounts import accounts
from mpi_parallel.pictures.confusion import confusion
from mpi_parallel.pictures.curves import curves
from mpi_parallel.pictures.mosaic import drawable, tiles, unit
from mpi_parallel.pictures.records import GALLERY
from mpi_parallel.pictures.scaling import points_of, scaling
from mpi_parallel.pictures.timeline import pipeline, timeline
from mpi_parallel.pictures.weights import weights
from tests.once import once
from tests.pictures.conftest import gallery

pytestmark = once


def words(picture):
    """The texts of a picture, as its SVG has them."""
    svg = style.image_of(picture, "svg").decode()
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture_is_written_as_its_name_says(run, tmp_path, ending):
    path = tmp_path / "new" / f"curves.{ending}"
    style.save(curves([run()]), path)
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_same_picture_is_the_same_file(run):
    first, second = (style.image_of(curves([record]), "svg") for record in [run()] * 2)
    assert first == second


def test_curves_of_one_run(run):
    told = words(curves([run()]))
    for word in ("loss", "accuracy", "train", "validation", "test", "epoch", "0.876"):
        assert word in told


def test_curves_of_several_runs_are_named(run):
    told = words(curves([run("first"), run("second", epochs=5)]))
    assert "first: validation" in told
    assert "second: train" in told


def test_curves_of_nothing(run):
    with pytest.raises(InputError, match="first: no epoch has ended yet"):
        curves([run(epochs=0)])


def test_confusion(run):
    told = words(confusion(run()))
    for word in ("a&lt;b", "taken for", "33 test rows", "12", "not bee", "0.900"):
        assert word in told


def test_confusion_of_rows_that_are_no_images_has_no_thumbnails(run):
    record = run()
    gallery(shape=(6,)).write(record.path / GALLERY)
    assert "not bee" not in words(confusion(record))


@pytest.mark.parametrize("draw", [confusion, weights])
def test_what_was_not_kept_cannot_be_drawn(run, draw):
    with pytest.raises(InputError, match=r"first: .*--report"):
        draw(run(without=("gallery",)))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 3)])
def test_weights_and_mistakes_of_images_with_and_without_colours(run, shape):
    record = run()
    gallery(shape=shape).write(record.path / GALLERY)
    assert "first 8 units" in words(weights(record))
    assert "not bee" in words(confusion(record))


def test_accounts_name_the_slowest_rank(run):
    told = words(accounts(run(ranks=3)))
    for word in ("rank 0", "rank 2, slowest", "compute", "merge, and waiting in it", "20%"):
        assert word in told


def test_accounts_of_a_run_that_went_on_with_fewer_ranks(run):
    record = run(ranks=3)
    table = record.epochs[-1]["seconds_by_rank"]
    table.update({phase: seconds[:1] for phase, seconds in table.items()})
    assert "rank 2" in words(accounts(record))


def test_the_pipeline_has_numbers_in_its_boxes(run):
    told = words(pipeline(run(ranks=2, pipe=2)))
    for word in ("stage 0", "stage 1", "1f1b, 2 micro-batches on 2 stages", "forward", "backward", "waiting"):
        assert word in told
    assert told.split().count("1") >= 4  # forward and backward on both stages


def test_a_run_without_stages_has_no_pipeline(run):
    with pytest.raises(InputError, match="first is no pipeline"):
        pipeline(run())


def test_the_timeline_has_a_lane_for_messages(run):
    told = words(timeline(run()))
    for word in ("rank 0", "rank 1", "messages", "bucket", "merged by buckets"):
        assert word in told


def test_a_step_can_be_chosen(run):
    assert "step 1" in words(timeline(run(), 1))
    with pytest.raises(InputError, match="step 7 is not in the trace, which has 1 to 1"):
        timeline(run("second"), 7)
    with pytest.raises(InputError, match="third has no trace: train with --trace"):
        timeline(run("third", without=("trace",)))


def test_scaling_with_the_ideal_line(run):
    runs = [run(f"on-{ranks}", ranks=ranks) for ranks in (1, 2, 4)]
    step = [{"ranks": n, "step_seconds": 1 / n, "samples_per_second": 900.0 * n**0.9} for n in (2, 1)]
    points = points_of(runs, step)
    assert points["runs"] == {1: 1000.0, 2: 2000.0, 4: 4000.0}
    told = words(scaling(points))
    for word in ("ideal", "benchmark step", "100%", "93%", "ranks"):
        assert word in told


def test_scaling_of_one_number_of_ranks(run):
    with pytest.raises(InputError, match=r"two numbers of ranks at least; there is runs \(2\)"):
        scaling(points_of([run()], []))


def test_points_of_layouts():
    row = {"samples_per_second": 5.0}
    figures = {"ranks": 2, "layouts": {"data, merged by window": row, "tensor": row}}
    assert points_of([], [figures]) == {"data": {2: 5.0}, "tensor": {2: 5.0}}


def test_tiles_are_laid_out_in_rows():
    sheet = tiles(np.arange(3.0).reshape(3, 1, 1), 2, 1, -1)
    np.testing.assert_array_equal(sheet, [[0, -1, 1, -1], [-1] * 4, [2, -1, -1, -1], [-1] * 4])
    assert tiles(np.zeros((2, 4, 5, 3)), 1, 2, 0).shape == (12, 7, 3)


def test_images_of_one_value_are_black():
    np.testing.assert_array_equal(unit(np.full((1, 2, 2), 7)), np.zeros((1, 2, 2)))


def test_what_is_an_image():
    assert [drawable(shape) for shape in [(2, 2), (2, 2, 3), (2, 2, 5), (4,), (2, 2, 2, 2)]] == [True, True] + 3 * [
        False
    ]


def test_colours_differ_in_grey_or_by_hatch():
    """What one sees when a picture was printed without colours."""

    def grey(colour):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    shown = ["data", "forward", "backward", "merge", "update", "wait", "other", "sum"]
    looks = [style.LOOKS[name] for name in shown]
    for number, (colour, hatch) in enumerate(looks):
        for other, other_hatch in looks[:number]:
            assert hatch != other_hatch or abs(grey(colour) - grey(other)) > 20


def test_without_matplotlib_it_is_named(run, monkeypatch):
    monkeypatch.setattr(style, "available", lambda: False)
    with pytest.raises(InputError, match=r"pip install 'mpi_parallel\[plots\]'"):
        curves([run()])
