"""A page in a real browser, and its structure."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=10000",
    "--enable-logging=stderr",
    "--dump-dom",
]
LIGHT, DARK = "--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"
OBSERVE = """
<script>
{
const seen = {};
addEventListener("load", async () => {
  ACTIONS
  seen.paper = getComputedStyle(document.body).backgroundColor;
  seen.ink = getComputedStyle(document.body).color;
  seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const alts = [...document.images].map((image) => image.alt);
  seen.images = [alts.length, alts.filter((alt) => alt.length > 10).length];
  seen.broken = [...document.images].filter((image) => image.complete && image.naturalWidth === 0).length;
  document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
});
}
</script>
"""


def visit(text: str, tmp_path: Path, *flags: str) -> tuple[Any, list[str]]:
    """What the page's own observer saw, and what stands in the console."""
    assert CHROMIUM is not None
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return (json.loads(html.unescape(found[1])) if found else None), console


def observed(text: str, actions: str = "") -> str:
    return text.replace("</body>", OBSERVE.replace("ACTIONS", actions) + "</body>")


def on_a_phone(text: str, width: int = 360, height: int = 740) -> str:
    """An observed page in a frame of a phone's size: a window of Chromium can't be so narrow."""
    inner = f'<iframe width="{width}" height="{height}" srcdoc="{html.escape(text)}"></iframe>'
    return f"""<!doctype html><body>{inner}<script>
document.querySelector("iframe").addEventListener("load", (event) => {{
  document.body.append(document.importNode(event.target.contentDocument.getElementById("seen"), true));
}});
</script></body>"""


VOID = {"meta", "link", "img", "input", "br", "wbr"}


class Structure(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
