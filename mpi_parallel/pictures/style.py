"""How all pictures look: colours that the colour-blind tell apart, hatches and labels for print without colours."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpi_parallel.options import InputError
from mpi_parallel.pictures.whole import whole

# Okabe and Ito 2008, "Color universal design": distinct under all common kinds of colour blindness.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#BBBBBB"
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}  # behind words that lines would cross
LINES = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "osD^vPX"

# What ranks do, in a trace and in the accounts: colour, and hatch for those who print in grey.
LOOKS: dict[str, tuple[str, str]] = {
    "data": (SKY, ""),
    "gather": (SKY, ""),
    "order": (SKY, ""),
    "read": (SKY, ".."),
    "read data": (SKY, ".."),
    "compute": (BLUE, ""),
    "forward": (BLUE, ""),
    "backward": (ORANGE, "//"),
    "weight gradient": (ORANGE, "\\\\"),
    "loss": (YELLOW, ""),
    "update": (GREEN, "\\\\"),
    "merge": (RED, "xx"),
    "publish": (RED, "xx"),
    "collect": (RED, "xx"),
    "sum": (PURPLE, ".."),
    "wait for the reader": (GREY, ""),
    "send": (PURPLE, "--"),
    "receive": (GREY, ""),
    "wait": (GREY, ""),
    "evaluate": (YELLOW, ".."),
    "checkpoint": (PURPLE, "oo"),
    "other": ("#FFFFFF", ""),
}

PLAIN: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small files, and what is read can be searched
    "svg.hashsalt": "mpi_parallel",  # the same picture is the same file
}


def available() -> bool:
    """Whether there is matplotlib."""
    try:
        import matplotlib.figure  # here, and nowhere before somebody wants a picture: it takes a quarter of a second
    except ImportError:
        return False
    return matplotlib.figure is not None


@contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of so many inches, without a display. Raises InputError where there is no matplotlib."""
    if not available():
        raise InputError("pictures are drawn with matplotlib, which is not there: pip install 'mpi_parallel[plots]'")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(PLAIN):
        yield Figure(figsize=(width, height), layout="constrained")


def save(picture: Any, path: Path) -> None:
    """Write a figure as its name says, .png or .svg, whole or not at all."""
    image = image_of(picture, path.suffix[1:])
    with whole(path) as part:
        part.write_bytes(image)


def image_of(picture: Any, kind: str) -> bytes:
    """The figure as the bytes of a png or an svg file."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context(PLAIN):
        picture.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()
