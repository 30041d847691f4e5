"""The code of the pages in docs/, to be run in the tests."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block of a page, in their order."""
    text = (DOCS / page).read_text("utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
