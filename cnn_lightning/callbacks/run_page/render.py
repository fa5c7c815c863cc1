"""The text of the page."""

import shlex
from functools import partial

from cnn_lightning.callbacks.run_page.charts import BOTTOM, LEFT, RIGHT, Chart, Curve, chart
from cnn_lightning.callbacks.run_page.content import Content
from cnn_lightning.page.template import rendered

STAGES = (("train", "training"), ("val", "validation"))


def render(content: Content) -> str:
    """One HTML file, which needs no other one."""
    stored, digest = content.stored()
    return rendered(
        "cnn_lightning.callbacks.run_page",
        run=content,
        headline=headline(content),
        charts=_charts(content),
        left=LEFT,
        right=RIGHT,
        bottom=BOTTOM,
        best=_best(content),
        table=_table(content),
        command=partial(explain_command, content),
        stored=stored,
        digest=digest,
    )


def explain_command(content: Content, index: int) -> str:
    """The command that writes the page of a picture of the validation split, where the report links it."""
    page = f"{content.folder}/explain/val-{index}.html"
    words = ["--ckpt_path", content.checkpoint, "--split", "val", "--index", str(index), "--output", page]
    return shlex.join(["cnn-lightning", "explain", *words])


def headline(content: Content) -> str:
    """How far the run is, such as ``epoch 3 of 30, running``."""
    of = f" of {content.epochs}" if content.epochs is not None else ""
    why = f": {content.reason}" if content.reason else ""
    return f"epoch {content.epoch}{of}, {content.state}{why}"


def _charts(content: Content) -> list[Chart]:
    history = content.history

    def curves(metric: str) -> list[Curve]:
        return [Curve(name, history.get(f"{stage}_{metric}", [])) for stage, name in STAGES]

    found = [
        chart("loss", curves("loss")),
        chart("accuracy", curves("acc"), percent=True),
        chart("learning rate", [Curve("learning rate", history.get("lr", []))]),
    ]
    return [each for each in found if each is not None]


def _best(content: Content) -> tuple[int, float] | None:
    """The first epoch with the highest accuracy in validation, and that accuracy."""
    points = content.history.get("val_acc", [])
    return max(points, key=lambda point: point[1]) if points else None


def _table(content: Content) -> list[list[int]]:
    """The confusion as a table; empty if the page shows it as a picture, or not at all."""
    found = content.confusion
    if found is None or found["uri"]:
        return []
    table = [[0] * len(found["names"]) for _ in found["names"]]
    for row, column, count in found["cells"]:
        table[row][column] = count
    return table
