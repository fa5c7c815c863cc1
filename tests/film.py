"""The animated picture of the README: ``python -m tests.film explain.html .github/pictures/page.webp``.

Chromium takes a photograph of the page after each action: other pictures are chosen, then a seven is drawn.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import CHROMIUM, FLAGS, LIGHT

SIZE = (1280, 1230)
"""Of the window, in CSS pixels."""
WIDTH = 960
"""Of the film."""
STILL, STROKE, LAST = 900, 220, 2200
"""How long a frame is shown, in milliseconds: a chosen picture, a part of the drawing, the whole drawing."""

SEVEN = [(0.25, 0.18), (0.4, 0.18), (0.55, 0.18), (0.72, 0.18), (0.65, 0.34), (0.57, 0.5), (0.5, 0.66), (0.45, 0.85)]
"""Places on the paper, from left and from above."""

CHOOSE = "document.querySelectorAll('#thumbs button')[{}].click();"
DRAW = """
const paper = document.getElementById("paper"), box = paper.getBoundingClientRect();
const place = ([x, y]) => ({{ clientX: box.left + x * box.width, clientY: box.top + y * box.height }});
const send = (name, to) => paper.dispatchEvent(new PointerEvent(name, place(to)));
const path = {};
send("pointerdown", path[0]);
path.slice(1).forEach((to) => send("pointermove", place));
"""


def frames() -> list[tuple[str, int]]:
    """The actions of each frame, and how long it is shown."""
    chosen = [(CHOOSE.format(number), STILL) for number in (0, 2, 7, 13)]
    parts = [list(map(list, SEVEN[:count])) for count in range(1, len(SEVEN) + 1)]
    drawn = [(DRAW.format(part), STROKE) for part in parts]
    return [*chosen, *drawn[:-1], (drawn[-1][0], LAST)]


def photograph(text: str, action: str, folder: Path) -> Image.Image:
    """The page after the action."""
    page, picture = folder / "page.html", folder / "picture.png"
    script = f"<script>addEventListener('load', () => {{ {action} }});</script></body>"
    page.write_text(text.replace("</body>", script), encoding="utf-8")
    window = [f"--window-size={SIZE[0]},{SIZE[1]}", "--hide-scrollbars", LIGHT, f"--user-data-dir={folder / 'profile'}"]
    flags = [flag for flag in FLAGS if flag != "--dump-dom"]
    command = [str(CHROMIUM), *flags, *window, f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=100, check=True)
    image = Image.open(io.BytesIO(picture.read_bytes())).convert("RGB")
    return image.resize((WIDTH, round(WIDTH * SIZE[1] / SIZE[0])), Image.Resampling.LANCZOS)


def main(page: str, output: str) -> None:
    """Write the film of a live page."""
    text = Path(page).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        images = [photograph(text, action, Path(folder)) for action, _ in frames()]
    times = [time for _, time in frames()]
    images[0].save(output, save_all=True, append_images=images[1:], duration=times, loop=0, quality=80, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
