"""The list of pages in a run's folder ``explain``: the run's report, index.html, reads it to link them."""

import json
from pathlib import Path

from cnn_lightning.files import written

FOLDER = "explain"
"""In a run's folder; the report links the pages in it."""
LIST = "pages.js"
"""A script, because a page that is opened from disk may not read other kinds of files."""


def make_folder(page: Path) -> None:
    """Make the folder ``explain`` of a run, if the page is to be written into it."""
    if _is_linked(page):
        page.parent.mkdir(exist_ok=True)


def write(page: Path) -> None:
    """List the pages beside a page of a run; pages elsewhere are not listed.

    Raises:
        UserError: The list can't be written.
    """
    if _is_linked(page):
        names = sorted(each.stem for each in page.parent.glob("*.html"))
        with written("--output", str(page.parent / LIST)) as temporary:
            temporary.write_text(f"window.pages = {json.dumps(names)};\n", encoding="utf-8")


def _is_linked(page: Path) -> bool:
    return page.parent.name == FOLDER and (page.parent.parent / "config.yaml").is_file()
