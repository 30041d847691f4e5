"""report.html: whole, without a network, with what matters in it; and looked at by a real browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mpi_parallel.pictures import style
from mpi_parallel.pictures.page import page, write_page
from tests.once import once

pytestmark = once

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Reader(HTMLParser):
    """What is linked, and what is read."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_has_everything_and_needs_nothing(run):
    text = page(run())
    reader = Reader(text)
    assert reader.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in reader.sources)
    assert "http" not in re.sub(r"base64,[^']*", "", text)
    told = " ".join(reader.words)
    for word in (
        "87.65%", "Learning curves", "What is taken for what", "The first layer", "Where the time went",
        "A step of every rank", "How to repeat it", "Configuration", "<set>.h5", "Environment", "ab" * 32,
        "node<1>", "--config", "--merge buckets",
    ):  # fmt: skip
        assert word in told, word
    assert "A step of the pipeline" not in told


def test_the_best_epoch_is_told_where_it_is_not_the_last(run):
    record = run()
    assert "in best.h5" not in page(record)
    record.epochs[1]["validation_loss"] = 0.01
    assert "<b>70.00%</b><span>validation accuracy of epoch 2, in best.h5" in page(record)


def test_a_pipeline_shows_its_diagram(run):
    assert "A step of the pipeline" in page(run(pipe=2))


def test_without_matplotlib_there_are_tables_and_a_sentence(run, monkeypatch):
    monkeypatch.setattr(style, "available", lambda: False)
    reader = Reader(page(run()))
    told = " ".join(reader.words)
    assert not reader.sources
    assert "pip install 'mpi_parallel[plots]'" in told
    assert "a<b" in told  # the confusion matrix as a table
    assert "87.65%" in told


def test_a_run_that_has_not_ended(run):
    told = " ".join(Reader(page(run(epochs=1, without=("end", "gallery", "trace")))).words)
    assert "not ended" in told


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_browser_shows_it(run, tmp_path):
    path = tmp_path / "report.html"
    write_page(run(), path)
    options = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--window-size=1000,1400",
    )  # fmt: skip
    shot = tmp_path / "shot.png"
    done = subprocess.run(
        [CHROMIUM, *options, f"--screenshot={shot}", path.as_uri()], capture_output=True, timeout=60, check=True
    )
    assert shot.exists(), done.stderr
    assert colours(shot) > 50  # not an empty page


def colours(path: Path) -> int:
    from PIL import Image

    with Image.open(path) as image:
        return len(image.convert("RGB").getcolors(2**24))
