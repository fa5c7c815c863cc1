"""``index.html`` of a run: what it says while the run lives and after it, and what a browser does with it."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from cnn_lightning.callbacks.pictures import Pictures, Validation, small_filters
from cnn_lightning.callbacks.run_page import callback
from cnn_lightning.callbacks.run_page.charts import Curve, chart
from cnn_lightning.callbacks.run_page.content import Content, read_content
from cnn_lightning.callbacks.run_page.render import render
from cnn_lightning.callbacks.run_page.validation import confusion_of, mistakes_of
from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.data import Digits
from cnn_lightning.data.loader import Batches
from cnn_lightning.draw import as_uri
from cnn_lightning.errors import UserError
from cnn_lightning.files import write_or_warn
from tests.browser import DARK, LIGHT, Structure, browser, observed, on_a_phone, visit

FIT = ["fit", "--data.batch_size", "256", "--trainer.enable_progress_bar", "false"]
"""Five steps an epoch."""
RUN = Path("runs/digits/version_0")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[Content]:
    """The contents of all pages that are written."""
    seen: list[Content] = []

    def spy(path: Path, writer: Any) -> None:
        write_or_warn(path, writer)
        found = read_content(path)
        assert found is not None
        seen.append(found)

    monkeypatch.setattr(callback, "write_or_warn", spy)
    return seen


def fit(*args: str, epochs: int = 2) -> int:
    return main([*FIT, "--trainer.max_epochs", str(epochs), *args])


def page(folder: Path = RUN) -> Content:
    found = read_content(folder / "index.html")
    assert found is not None
    return found


class After(Callback):
    """Does something after a step, once."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.action()


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Add a callback to the next runs."""

    def add(step: int, action: Callable[[], None]) -> None:
        monkeypatch.setattr(Classifier, "configure_callbacks", lambda self: [After(step, action)])

    return add


# ---- the page of a run


def test_fit_ends_with_the_page_below_its_four_lines(
    here: Path, pages: list[Content], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit() == 0
    lines = capsys.readouterr().out.strip().splitlines()[-5:]
    assert [line.partition(":")[0] for line in lines] == ["val_acc", "test_acc", "run", "again", "see"]
    assert lines[-1] == f"see: {RUN}/index.html"
    assert [(each.epoch, each.state) for each in pages] == [
        (0, "running"),
        (1, "running"),
        (2, "running"),
        (2, "finished"),
        (2, "finished"),
    ]
    found = page()
    assert found.test == pytest.approx(float(lines[1].split()[1]), abs=1e-4)
    assert dict(found.history["val_acc"])[2] == pytest.approx(float(lines[0].split()[1]), abs=1e-4)
    assert [epoch for epoch, _ in found.history["train_loss"]] == [1, 2]
    assert [frame["epoch"] for frame in found.frames] == [0, 1, 2]
    assert {row["name"]: (row["shape"], row["parameters"], row["implementation"]) for row in found.layers}["conv1"] == (
        "16×8×8",
        160,
        "numpy",
    )
    assert found.config == (RUN / "config.yaml").read_text()
    again = lines[3].removeprefix("again: ")
    assert again in [each["command"] for each in found.commands]
    text = (RUN / "index.html").read_text(encoding="utf-8")
    structure = Structure(text)
    assert len(structure.ids) == len(set(structure.ids))
    assert "epoch 2 of 2, finished" in text
    outside = [
        value
        for _, attributes in structure.found
        for name, value in attributes.items()
        if name in ("src", "href") and not (value or "").startswith(("data:", "explain/"))
    ]
    assert outside == []
    assert "http" not in text.replace("http://www.w3.org", "")


def test_without_pictures_the_page_has_the_rest(here: Path) -> None:
    assert fit("--pictures", "false", epochs=1) == 0
    found = page()
    assert found.frames == []
    assert found.confusion is found.mistakes is None
    assert found.history["val_acc"]
    assert found.layers


def test_no_logger_no_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.logger", "false", epochs=1) == 0
    assert "see:" not in capsys.readouterr().out
    assert not list(here.rglob("index.html"))


@pytest.mark.slow
def test_its_commands_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(epochs=1) == 0
    for each in page().commands:
        words = each["command"].split()
        assert words[0] == "cnn-lightning"
        quiet = ["--trainer.enable_progress_bar", "false"] if words[1] in ("fit", "test", "predict") else []
        if words[1] == "export":
            pytest.importorskip("onnx")
        assert main([*words[1:], *quiet]) == 0, each
    assert page(RUN.with_name("version_1")).epoch == 2


# ---- how runs end, and go on


def test_a_signal_interrupts_and_a_resumed_run_goes_on(here: Path, after: Any) -> None:
    after(13, lambda: signal.raise_signal(signal.SIGTERM))
    assert fit(epochs=4) == 128 + signal.SIGTERM
    before = page()
    assert (before.epoch, before.state, before.reason) == (2, "interrupted", "by a signal, after step 13")
    go_on = next(each["command"] for each in before.commands if "last" in each["command"].split())
    looks: list[Content] = []
    after(14, lambda: looks.append(page()))
    assert main([*go_on.split()[1:], "--trainer.enable_progress_bar", "false"]) == 0
    (at_once,) = looks
    assert (at_once.epoch, at_once.state, at_once.reason) == (2, "running", "")
    assert (at_once.confusion, at_once.mistakes) == (before.confusion, before.mistakes)
    assert (at_once.history, at_once.frames) == (before.history, before.frames)
    found = page()
    assert (found.epoch, found.state) == (4, "finished")
    for name in ("train_loss", "val_acc", "lr"):
        assert [epoch for epoch, _ in found.history[name]] == [1, 2, 3, 4], name
    assert [frame["epoch"] for frame in found.frames] == [0, 1, 2, 3, 4]


def test_a_stop_and_an_error_are_named(here: Path, after: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit("--trainer.max_steps", "7", epochs=3) == 0
    assert (page().epoch, page().state, page().reason) == (1, "stopped", "trainer.max_steps, after step 7")
    assert fit("--early_stopping", "1", "--model.lr", "0", "--model.schedule", "none", epochs=9) == 0
    found = page(RUN.with_name("version_1"))
    assert (found.epoch, found.reason) == (2, "val_acc had no gain for 1 validations")

    def fail() -> None:
        raise ValueError("the disk <b>burns</b>")

    after(3, fail)
    assert fit() == 2
    path = RUN.with_name("version_2") / "index.html"
    assert (page(path.parent).state, page(path.parent).reason) == ("failed", "after step 3: the disk <b>burns</b>")
    assert "<b>burns" not in path.read_text()


def test_a_page_that_can_not_be_written_ends_no_run(here: Path, after: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def block() -> None:
        (RUN / "index.html").unlink()
        (RUN / "index.html").mkdir()

    after(1, block)
    with pytest.warns(UserWarning, match=r"index.html: not written: Is a directory"):
        assert fit() == 2
    out, err = capsys.readouterr()
    assert out.strip().splitlines()[-1].startswith("again: ")
    assert "index.html: not written" in err.strip().splitlines()[-1]


def test_a_changed_page_and_unreadable_numbers_end_no_run(
    here: Path, after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(8, lambda: signal.raise_signal(signal.SIGTERM))
    assert fit(epochs=3) == 128 + signal.SIGTERM
    path = RUN / "index.html"
    path.write_text(path.read_text().replace('"epoch":1', '"epoch":7'))
    assert read_content(path) is None
    after(99, lambda: None)

    def unreadable(path: Path) -> Any:
        raise UserError("metrics.csv: line 2 is damaged")

    monkeypatch.setattr(callback, "read_metrics", unreadable)
    with pytest.warns(UserWarning, match=r"line 2 is damaged; the curves of index.html begin here"):
        assert fit("--ckpt_path", "last", epochs=3) == 0
    assert [epoch for epoch, _ in page().history["val_acc"]] == [2, 3]


def test_few_frames_of_many_epochs() -> None:
    content = Content("net", "data", "run")
    for epoch in range(200):
        content.add_frame({"epoch": epoch})
        assert len(content.frames) <= 16
        assert content.frames[0]["epoch"] == 0
        assert content.frames[-1]["epoch"] == epoch
    assert [frame["epoch"] for frame in content.frames] == [*range(0, 199, 16), 199]


def test_numbers_that_are_not_finite_are_left_out() -> None:
    content = Content("net", "data", "run")
    content.add(1, {"val_loss": float("nan"), "val_acc": 0.5})
    content.add(2, {"val_loss": float("inf"), "val_acc": 0.6})
    assert content.history == {"val_acc": [(1, 0.5), (2, 0.6)]}
    content.begin_with({"val_loss": [(1, 3.0), (1, 2.0), (2, float("nan"))]})
    assert content.history["val_loss"] == [(1, 2.0)]
    assert "NaN" not in render(content)


# ---- the index of a mistake


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_index_of_a_mistake_is_that_of_the_validation_loader(world_size: int) -> None:
    """Whatever process has seen the picture."""
    n = 50
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2)
    labels = torch.arange(n) % 10
    seen = []
    for rank in range(world_size):
        loader = Batches(images, labels, batch_size=8, mean=(0.0,), std=(1.0,), rank=rank, world_size=world_size)
        watch = Pictures()
        trainer: Any = SimpleNamespace(val_dataloaders=loader, world_size=world_size, global_rank=rank)
        watch.on_validation_epoch_start(trainer, None)  # type: ignore[arg-type]
        for number, (batch, _) in enumerate(loader):
            places = watch._places(trainer, number, len(batch))
            assert places.tolist() == (batch[:, 0, 0, 0] * 255).round().int().tolist()
            seen += places.tolist()
    assert sorted(seen) == list(range(n))


def test_a_mistake_of_a_fit_is_the_picture_of_its_index(here: Path) -> None:
    assert fit(epochs=1) == 0
    found = page()
    assert found.mistakes is not None
    data = Digits(batch_size=7)
    data.setup()
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    entries = found.mistakes["entries"]
    assert len(entries) == 16
    assert [each["true"] for each in entries] == [str(int(labels[each["index"]])) for each in entries]
    assert len({each["index"] for each in entries}) == 16
    kept = read_checkpoint(RUN / "checkpoints/best.ckpt")
    assert kept["data"]["class_names"] == tuple("0123456789")


# ---- curves


def test_a_chart_has_round_ticks_inside_and_the_last_values() -> None:
    drawn = chart("accuracy", [Curve("validation", [(1, 0.13), (2, 0.5), (3, 0.955)])], percent=True)
    assert drawn is not None
    assert [tick.text for tick in drawn.up] == ["20 %", "40 %", "60 %", "80 %"]
    assert drawn.lines[0].name == "validation 95.5%"
    assert drawn.alt == "accuracy, epochs 1 to 3: validation from 13.0% to 95.5%"
    flat = chart("learning rate", [Curve("lr", [(1, 0.1), (2, 0.1)])])
    assert flat is not None
    assert flat.up[0].place == flat.lines[0].last[1] == 96
    heights = [float(place.split(",")[1]) for place in drawn.lines[0].places.split()]
    assert heights == sorted(heights, reverse=True)
    assert chart("loss", [Curve("training", [])]) is None
    long = chart("loss", [Curve("training", [(n, 1 / n) for n in range(1, 5001)])])
    assert long is not None
    assert len(long.lines[0].places.split()) <= 402


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 1e6], [-1e99, 1e99], [1.0, 1.0 + 2e-16]])
def test_a_chart_of_any_finite_values_stays_in_its_frame(values: list[float]) -> None:
    drawn = chart("loss", [Curve("training", list(enumerate(values, 1)))])
    assert drawn is not None
    for place in drawn.lines[0].places.split():
        x, y = map(float, place.split(","))
        assert 40 <= x <= 340
        assert 0 <= y <= 200


# ---- in a browser


def content(classes: int = 10, letters: int = 1, state: str = "finished") -> Content:
    """A page with everything on it."""
    names = [f"{n}".rjust(letters, "w") for n in range(classes)]
    rng = np.random.default_rng(0)
    counts = np.diag(rng.integers(20, 40, classes)) + rng.integers(0, 2, (classes, classes))
    facts = torch.tensor([[3.0 - n / 10, n % classes, (n + 1) % classes, 0.62] for n in range(16)])
    pictures = torch.from_numpy(rng.random((16, 1, 8, 8)))
    validation = Validation(3, counts, facts, pictures, list(range(17, 33)))
    made = Content(
        "simple_cnn",
        "Digits",
        "runs/digits/version_0",
        state=state,
        epoch=3,
        epochs=30,
        parameters=22602,
        where="/home/someone",
        checkpoint="runs/digits/version_0/checkpoints/best.ckpt",
        config="trainer:\n  max_epochs: 30\n",
        confusion=confusion_of(validation, names),
        mistakes=mistakes_of(validation, names, ((), ())),
        layers=[
            {
                "name": "features.0.a_name_of_a_layer_that_is_long",
                "type": "Conv2d",
                "shape": "16×8×8",
                "parameters": 160,
                "flops": "113k",
                "implementation": "numpy",
                "note": "fast, with relu1 pool1",
            }
        ],
        commands=[{"what": "test it again", "command": "cnn-lightning test --config runs/digits/config.yaml"}],
        written="2026-01-01 00:00:00",
        test=0.97,
    )
    for epoch in range(1, 4):
        made.add(epoch, {"train_loss": 1 / epoch, "val_loss": 2 / epoch, "val_acc": epoch / 4, "lr": 1e-3})
        image = as_uri(small_filters(torch.randn(16, 1, 3, 3))[0])
        made.add_frame({"epoch": epoch, "uri": image, "scale": f"scale {epoch}", "width": 300, "height": 80})
    return made


def quiet(console: list[str]) -> list[str]:
    """The console without the line of a script that may be missing."""
    return [line for line in console if "pages.js" not in line]


PICK = """
const $ = (query) => document.querySelector(query);
const link = $('[data-page="val-18"]');
const click = () => {
  const event = new MouseEvent("click", { bubbles: true, cancelable: true });
  const look = (each) => { seen.stays = each.defaultPrevented; each.preventDefault(); };
  link.addEventListener("click", look, { once: true });
  link.dispatchEvent(event);
};
click();
seen.open = $("#mistake").open;
seen.words = $("#words").textContent;
seen.large = $("#large").src === link.querySelector("img").src;
seen.command = $("#mistake code:not(#page)").textContent;
seen.page = $("#page").textContent;
$("#mistake .copy").click();
seen.copied = getSelection().toString();
$("#mistake form button").click();
seen.closed = !$("#mistake").open;
link.focus();
seen.focus = document.activeElement === link;
"""


@browser
def test_a_mistake_without_a_page_says_how_to_write_it(tmp_path: Path) -> None:
    seen, console = visit(observed(render(content()), PICK), tmp_path)
    assert quiet(console) == []
    command = (
        "cnn-lightning explain --ckpt_path runs/digits/version_0/checkpoints/best.ckpt --split val --index 18 "
        "--output runs/digits/version_0/explain/val-18.html"
    )
    assert (seen["stays"], seen["open"], seen["closed"], seen["large"], seen["focus"]) == (True,) * 5
    assert seen["words"] == "is 1, says 2 (62 %)"
    assert (seen["command"], seen["copied"]) == (command, command)
    assert seen["page"] == "explain/val-18.html"
    assert seen["broken"] == 0


@browser
def test_a_mistake_with_a_page_leads_there(tmp_path: Path) -> None:
    (tmp_path / "explain").mkdir()
    (tmp_path / "explain/pages.js").write_text('window.pages = ["val-18", "val-3"];\n')
    seen, console = visit(observed(render(content()), PICK.split("seen.large")[0]), tmp_path)
    assert console == []
    assert (seen["stays"], seen["open"]) == (False, False)


@browser
def test_the_slider_shows_the_filters_of_its_epoch(tmp_path: Path) -> None:
    made = content()
    actions = """
    const slider = document.getElementById("epoch");
    slider.value = 0;
    slider.dispatchEvent(new Event("input"));
    seen.which = document.getElementById("which").textContent;
    seen.words = slider.getAttribute("aria-valuetext");
    seen.frame = document.getElementById("frame").src;
    seen.scale = document.getElementById("scale").textContent;
    """
    seen, console = visit(observed(render(made), actions), tmp_path)
    assert quiet(console) == []
    assert (seen["which"], seen["words"], seen["scale"]) == ("1", "epoch 1", "scale 1")
    assert seen["frame"] == made.frames[0]["uri"]


@browser
def test_a_cell_of_a_large_confusion_can_be_read(tmp_path: Path) -> None:
    made = content(classes=100)
    assert made.confusion is not None
    names, (row, column, count) = made.confusion["names"], made.confusion["cells"][1]
    actions = f"""
    const matrix = document.getElementById("matrix");
    const box = matrix.getBoundingClientRect();
    const x = box.left + box.width * ({column} + .5) / 100, y = box.top + box.height * ({row} + .5) / 100;
    matrix.dispatchEvent(new PointerEvent("pointermove", {{ clientX: x, clientY: y }}));
    seen.cell = document.getElementById("cell").textContent;
    """
    seen, console = visit(observed(render(made), actions), tmp_path)
    assert quiet(console) == []
    total = made.confusion["totals"][row]
    assert seen["cell"] == f"{names[row]} taken for {names[column]}: {count} of {total}"


TICK = """
seen.times = sessionStorage.times = 1 + Number(sessionStorage.times ?? 0);
seen.wait = window.wait;
if (seen.times === 1) {
  if (AGAIN === false) document.getElementById("reload").click();
  window.tick?.();
}
"""


@browser
@pytest.mark.parametrize("again", [True, False])
def test_a_running_page_is_read_again_unless_the_reader_says_no(again: bool, tmp_path: Path) -> None:
    text = render(content(state="running"))
    timer = "<script>window.setInterval = (tick, wait) => { window.tick = tick; window.wait = wait; };</script>"
    text = observed(text, TICK.replace("AGAIN", json.dumps(again))).replace("<head>", f"<head>{timer}")
    seen, _ = visit(text, tmp_path)
    assert (seen["times"], seen["wait"]) == (2 if again else 1, 5000)
    assert 'id="reload"' not in render(content())


def brightness(color: str) -> float:
    numbers = [float(each) for each in re.findall(r"[\d.]+", color)[:3]]
    return sum(numbers) / 3


@browser
def test_a_long_name_hides_no_probability(tmp_path: Path) -> None:
    actions = """
    seen.inside = [...document.querySelectorAll(".mistakes .says")].map((says) => {
      const name = says.firstElementChild.getBoundingClientRect(), last = says.lastElementChild.getBoundingClientRect();
      const card = says.closest("li").getBoundingClientRect();
      const apart = last.left >= name.right || last.top >= name.bottom - 1;
      return apart && name.right <= card.right + 1 && last.right <= card.right + 1 && last.bottom <= card.bottom + 1;
    });
    """
    seen, _ = visit(observed(render(content(10, 60)), actions), tmp_path)
    assert seen["inside"] == [True] * 16


@browser
@pytest.mark.parametrize(("classes", "letters"), [(10, 60), (100, 60)])
def test_light_dark_and_a_phone(classes: int, letters: int, tmp_path: Path) -> None:
    text = render(content(classes, letters))
    for scheme, dark in ((LIGHT, False), (DARK, True)):
        seen, console = visit(observed(text), tmp_path, scheme)
        assert quiet(console) == []
        assert (brightness(seen["paper"]) < brightness(seen["ink"])) == dark
        assert seen["wide"] == 0
        assert seen["images"][0] - 1 <= seen["images"][1]  # but for that of the closed dialog
    seen, _ = visit(on_a_phone(observed(text)), tmp_path)
    assert seen["wide"] <= 0


def test_the_data_of_the_page_can_not_close_its_script() -> None:
    made = content()
    made.config = "</script><script>alert(1)</script>"
    text = render(made)
    assert "</script><script>alert" not in text
    found = re.search(r'id="run" data-digest="\w+">(.*?)</script>', text)
    assert found is not None
    assert json.loads(found[1])["config"] == made.config
