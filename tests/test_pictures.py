"""Pictures that can be read: text inside its tile, one style for confusions, colours for filters of colours."""

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from cnn_lightning.callbacks import confusion as confusions
from cnn_lightning.callbacks import curves, evaluation, lettering, tiles
from cnn_lightning.callbacks.confusion import confusion, in_words, most_confused, order_by_confusion
from cnn_lightning.callbacks.pictures import filters, mistakes
from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.data import ImageFolder
from cnn_lightning.data import pictures as data_pictures
from cnn_lightning.data.pictures import read_picture
from cnn_lightning.data.record import DataRecord
from cnn_lightning.errors import UserError

SIXTY = {
    "wide": "W" * 60,
    "narrow": "i" * 60,
    "words": "a class of many words and of sixty letters, so to say, or so",
}


def counts_of(n: int, group: int = 5, seed: int = 0) -> NDArray[np.int64]:
    """Confusions mostly inside groups of classes, whose members are spread over the matrix."""
    rng = np.random.default_rng(seed)
    place, groups = rng.permutation(n), np.arange(n) // group
    counts = np.zeros((n, n), np.int64)
    for one in range(n):
        near = np.flatnonzero(groups == groups[one])
        for kind in rng.random(50):
            other = one if kind < 0.8 else rng.choice(near) if kind < 0.97 else rng.integers(n)
            counts[place[one], place[other]] += 1
    return counts


# ---- text stays in its box


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """For each text that is written, the box that it was given and the box of its ink."""
    seen: list[tuple[Any, Any]] = []
    original = lettering.write

    def spy(image: Image.Image, box: Any, lines: Any, **options: Any) -> Any:
        around = tuple(round(side) + more for side, more in zip(box, (-9, -9, 9, 9), strict=True))
        before = image.crop(around)
        ink = original(image, box, lines, **options)
        changed = ImageChops.difference(before, image.crop(around)).convert("L").getbbox()
        assert changed is not None
        assert size_of(ink) == (natural(lines, box, **options)), lines
        assert tuple(side + around[axis % 2] for axis, side in enumerate(changed)) == ink, lines
        seen.append((box, ink))
        return ink

    for module in (confusions, tiles):
        monkeypatch.setattr(module, "write", spy)
    return seen


def size_of(box: Any) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]


def natural(text: str, box: Any, size: int = 11, turned: bool = False, **_: Any) -> tuple[float, float]:
    """The size of the ink of the shortened text where it has all the space it wants."""
    room = size_of([round(side) for side in box])[turned] - 2 * lettering.EDGE
    line = lettering._spaced(lettering.shortened(text, room, size))
    canvas = Image.new("L", (1500, 60))
    ImageDraw.Draw(canvas).text((20, 30), line, 255, lettering.font_of(size), anchor="lm")
    width, height = size_of(canvas.getbbox())
    return (height, width) if turned else (width, height)


def overlap(a: Any, b: Any) -> bool:
    return bool(max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3]))


def is_inside(ink: Any, box: Any) -> bool:
    return bool(box[0] <= ink[0] and box[1] <= ink[1] and ink[2] <= box[2] and ink[3] <= box[3])


def check_boxes(seen: list[tuple[Any, Any]], image: Image.Image) -> None:
    assert seen
    for box, ink in seen:
        assert is_inside(ink, [round(side) for side in box])
        assert is_inside(ink, (0, 0, *image.size))
    for (_, one), (_, other) in itertools.combinations(seen, 2):
        assert not overlap(one, other), (one, other)


@pytest.mark.parametrize("name", ["8", *SIXTY.values()], ids=["one letter", *SIXTY])
@pytest.mark.parametrize("n", [1, 10, 100])
def test_no_text_of_a_confusion_leaves_its_box_or_meets_another(n: int, name: str, boxes: Any) -> None:
    image = confusion(counts_of(n), [name] * n, "validation after epoch 3")
    check_boxes(boxes, image)


@pytest.mark.parametrize("name", ["8", *SIXTY.values()], ids=["one letter", *SIXTY])
@pytest.mark.parametrize("n", [1, 16])
def test_no_text_of_mistakes_leaves_its_tile_or_meets_another(n: int, name: str, boxes: Any) -> None:
    facts = torch.tensor([[1.0, 0, 0, 0.62]]).repeat(n, 1)
    image = mistakes(facts, torch.ones(n, 1, 8, 8), [name], ((), ()))
    check_boxes(boxes, image)
    assert all(ink[2] - ink[0] <= tiles.TILE + 2 for _, ink in boxes)


def test_the_check_of_boxes_can_fail() -> None:
    assert overlap((0, 0, 10, 10), (9, 9, 20, 20))
    assert not overlap((0, 0, 10, 10), (10, 0, 20, 10))
    assert not is_inside((0, 0, 11, 10), (0, 0, 10, 10))


@pytest.mark.parametrize("name", SIXTY.values(), ids=list(SIXTY))
def test_a_long_name_is_cut_and_what_follows_it_stays(name: str) -> None:
    lines = tiles.says(name, 0.62)
    assert len(lines) == 2
    assert lines[-1].endswith("… (62 %)")
    assert tiles.says("8", 0.62) == ["says 8 (62 %)"]
    assert all(lettering.width_of(line, tiles.SIZE) <= tiles.TILE for line in lines)


def test_a_number_is_as_wide_as_it_may_be() -> None:
    assert [confusions._fitting(count, 32) for count in (7, 1234, 123456, 12345678)] == ["7", "1234", "123k", "12M"]


def test_there_is_room_between_a_name_and_its_probability() -> None:
    """``says 862%`` was what ``says 8 62%`` looked like."""
    space = (
        lettering.width_of("8 (", tiles.SIZE)
        - lettering.width_of("8", tiles.SIZE)
        - lettering.width_of("(", tiles.SIZE)
    )
    assert space >= 3


# ---- confusions


def test_a_confusion_is_dark_where_it_is_common() -> None:
    levels = confusions.colors(np.array([[9, 1], [0, 10]])).astype(int).sum(2)
    assert levels[1, 1] < levels[0, 0] < levels[0, 1] < levels[1, 0] == 3 * 255


def test_right_is_blue_and_wrong_is_orange() -> None:
    found = confusions.colors(np.array([[5, 5], [5, 5]])).astype(int)
    assert found[0, 0, 2] > found[0, 0, 0]
    assert found[0, 1, 0] > found[0, 1, 2]


def near_the_diagonal(counts: NDArray[np.int64], order: list[int], width: int) -> float:
    """The fraction of the mistakes that lie near the diagonal."""
    sorted_counts = counts[np.ix_(order, order)]
    places = np.arange(len(counts))
    near = np.abs(places[:, None] - places) < width
    wrong = sorted_counts - np.diag(np.diag(sorted_counts))
    return float(wrong[near].sum() / wrong.sum())


@pytest.mark.parametrize("n", [30, 100])
def test_confused_classes_come_to_stand_together(n: int) -> None:
    counts = counts_of(n)
    order = order_by_confusion(counts)
    assert sorted(order) == list(range(n))
    assert near_the_diagonal(counts, order, 5) > 0.7
    assert near_the_diagonal(counts, list(range(n)), 5) < 0.4


def test_chains_of_confused_classes_are_joined_at_the_ends_that_are_confused() -> None:
    counts = np.diag([10, 10, 10, 10])
    assert order_by_confusion(counts) == [0, 1, 2, 3]
    counts[0, 1], counts[2, 3], counts[1, 3] = 9, 8, 1
    assert order_by_confusion(counts) == [0, 1, 3, 2]
    counts[1, 3], counts[0, 2] = 0, 1
    assert order_by_confusion(counts) == [1, 0, 2, 3]


@pytest.mark.parametrize(("n", "sorted_by_name"), [(20, True), (21, False)])
def test_many_classes_are_drawn_in_that_order(n: int, sorted_by_name: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[Any] = []
    monkeypatch.setattr(confusions, "write", lambda image, box, text, **options: texts.append(text))
    counts, names = counts_of(n), [f"name {number:03}" for number in range(n)]
    confusion(counts, names)
    order = list(range(n)) if sorted_by_name else order_by_confusion(counts)
    assert [text for text in texts if text in names] == [names[index] for index in order for _ in range(2)]
    assert (order == sorted(order)) == sorted_by_name


def test_the_most_confused_pairs_in_words() -> None:
    counts = np.array([[30, 1, 0], [3, 33, 0], [0, 3, 1]])
    pairs = most_confused(counts)
    assert [in_words(pair, "a8b") for pair in pairs] == [
        "b taken for 8: 3 of 4",
        "8 taken for a: 3 of 36",
        "a taken for 8: 1 of 31",
    ]


def test_the_largest_confusion_has_a_moderate_size() -> None:
    assert max(confusion(np.eye(1000, dtype=np.int64), [f"class {n}" for n in range(1000)]).size) < 1500


def test_fit_and_test_draw_confusions_by_one_function(tmp_path: Path) -> None:
    counts = counts_of(10)
    evaluation.write_confusion(counts, list("0123456789"), tmp_path)
    with Image.open(tmp_path / "confusion.png") as written:
        assert np.array_equal(np.asarray(written), np.asarray(confusion(counts, list("0123456789"), "test")))


def test_titles_name_the_split_and_the_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[Any] = []
    monkeypatch.setattr(confusions, "write", lambda image, box, lines, **options: texts.append(lines))
    confusion(np.array([[3, 1], [0, 4]]), ("cat", "dog"), "test")
    assert texts[0] == "test: accuracy 87.5% (7 of 8 right)"


def test_the_title_of_curves_has_the_best_accuracy_and_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert curves._best({"val_acc": [(1, 0.5), (2, 0.9), (3, 0.8)]}) == "validation at best 90.0%, epoch 2"
    assert curves._best({}) == ""
    lines = "".join(f"{epoch},{epoch},{epoch / 1e4}\n" for epoch in range(1000))
    (tmp_path / "metrics.csv").write_text(f"epoch,step,val_acc\n{lines}")
    figure = Figure(figsize=(10, 4), layout="constrained")
    monkeypatch.setattr(curves, "Figure", lambda **options: figure)
    curves.draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    figure.draw_without_rendering()
    axes = figure.axes[1]
    titles = [each.get_window_extent() for each in (axes.title, axes._left_title, axes._right_title)]  # type: ignore[attr-defined]
    assert titles[1].x1 < titles[2].x0
    assert titles[2].x1 <= figure.bbox.x1


# ---- filters


def test_filters_of_colours_are_in_colours() -> None:
    weight = torch.zeros(2, 3, 5, 5)
    weight[0, 0], weight[1, 2] = 0.5, -0.25
    image = filters(weight)
    assert image.mode == "RGB"
    assert image.getpixel((3, 3)) == (255, 128, 128)
    assert image.getpixel((image.width - 3, 3)) == (128, 128, 65)  # 128 - 127 / 2
    assert image.width == (2 * 5 + 1) * 8


@pytest.mark.parametrize("channels", [1, 2, 4, 16])
def test_other_filters_are_maps(channels: int) -> None:
    assert filters(torch.randn(4, channels, 3, 3)).height > 20


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_lose_their_normalisation_if_there_is_one(channels: int) -> None:
    picture = np.full((channels, 2, 2), 0.5, np.float32)
    white = (255,) * 3 if channels == 3 else 255
    grey = (128,) * 3 if channels == 3 else 128
    assert tiles.pixels(picture, ((), ())).getpixel((0, 0)) == grey
    assert tiles.pixels(picture, ((0.75,) * channels, (0.5,) * channels)).getpixel((0, 0)) == white


# ---- the truth beside the guess


def predicted(*args: str) -> tuple[list[dict[str, str]], Path]:
    """The rows of predictions.csv of the last predict, and its folder."""
    options = ["--ckpt_path", "last", "--trainer.enable_progress_bar", "false"]
    assert main(["predict", *options, *args]) == 0
    folder = max(Path("runs/digits-predict").iterdir())
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file)), folder


def test_predictions_have_the_truth_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boxes: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    fast = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--pictures", "false"]
    assert main(["fit", *fast]) == 0
    boxes.clear()
    rows, folder = predicted()
    accuracy = np.mean([row["class"] == row["true"] for row in rows])
    assert 0.05 < accuracy < 1
    with Image.open(folder / "uncertain.png") as image:
        check_boxes(boxes, image)
    for name in ("7", "unknown"):
        (tmp_path / "some" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "some" / name / "0.png")
    rows, _ = predicted("--data.predict_dir", "some")
    assert [row["true"] for row in rows] == ["7", ""]
    rows, _ = predicted("--data.predict_dir", "some/unknown")
    assert "true" not in rows[0]


# ---- pictures that are not square


def write_folders(root: Path, wide: int, square: int, classes: int = 2) -> None:
    """Pictures of one grey each, of 24x12 or 12x12 pixels."""
    for label in range(classes):
        for split, n in (("train", 8), ("val", 2), ("test", 2)):
            folder = root / split / f"class {label}"
            folder.mkdir(parents=True)
            for number in range(n):
                width = 24 if number < wide else 12
                pixels = np.full((12, width), 40 + 100 * label + number, np.uint8)
                if number < wide + square:
                    Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("shape", [(16, 16), (5, 5), (40, 40)])
def test_square_pictures_are_the_same_bit_for_bit(shape: tuple[int, int], grey: bool, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.png")
    squeezed, padded = (read_picture(tmp_path / "0.png", 16, grey, fit=fit) for fit in ("squeeze", "pad"))
    assert np.array_equal(squeezed, padded)


@pytest.mark.parametrize("size", [(24, 12), (12, 24), (100, 1), (13, 12)])
def test_padding_keeps_the_shape_and_puts_white_at_both_sides(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("L", size, 0).save(tmp_path / "0.png")
    (found,) = read_picture(tmp_path / "0.png", 12, grey=True, fit="pad")
    rows, columns = (found == 0).any(1).sum(), (found == 0).any(0).sum()
    assert max(rows, columns) == 12
    assert (int(columns), int(rows)) == tuple(max(1, round(12 * side / max(size))) for side in size)
    assert abs(int((found[:, :6] == 255).sum()) - int((found[:, 6:] == 255).sum())) <= 12
    (squeezed,) = read_picture(tmp_path / "0.png", 12, grey=True)
    assert (squeezed == 0).all()


SMALL = {"image_size": 12, "grey": True, "batch_size": 8, "augment": False}


def test_fit_says_once_how_many_pictures_are_squeezed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folders(tmp_path, wide=2, square=9)
    data = ImageFolder(str(tmp_path), **SMALL)  # type: ignore[arg-type]
    data.setup("fit")
    data.setup("test")
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [
        "cnn-lightning: 12 of 24 pictures are not square and are squeezed to 12x12; data.fit pad keeps their shape"
    ]
    ImageFolder(str(tmp_path), **SMALL).setup("test")  # type: ignore[arg-type]
    for fit in ("squeeze", "pad"):
        ImageFolder(str(tmp_path), fit=fit, **SMALL).setup("fit")  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


def test_pictures_from_files_are_padded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path, wide=1, square=9)
    held = ImageFolder(str(tmp_path), fit="pad", **SMALL)  # type: ignore[arg-type]
    held.setup()
    monkeypatch.setattr(data_pictures, "MEMORY", 1)
    read = ImageFolder(str(tmp_path), fit="pad", num_workers=0, **SMALL)  # type: ignore[arg-type]
    read.setup()
    for one, other in zip(held.val_dataloader(), read.val_dataloader(), strict=True):
        assert torch.equal(one[0], other[0])


def test_a_checkpoint_keeps_how_pictures_become_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "root", wide=1, square=9)
    options = ["--data", "ImageFolder", "--data.root", "root", "--data.image_size", "12", "--data.grey", "true"]
    quiet = ["--trainer.enable_progress_bar", "false"]
    fit = ["fit", *options, *quiet, "--trainer.max_epochs", "1", "--pictures", "false"]
    assert main([*fit, "--data.fit", "pad"]) == 0
    best = "runs/imagefolder/version_0/checkpoints/best.ckpt"
    assert DataRecord.of(read_checkpoint(best)).fit == "pad"
    padded = ImageFolder("root", fit="pad", **SMALL)  # type: ignore[arg-type]
    padded.setup("test")
    kept = ImageFolder("root", **SMALL)  # type: ignore[arg-type]
    kept.setup("test")
    assert not torch.equal(next(iter(kept.test_dataloader()))[0], next(iter(padded.test_dataloader()))[0])
    DataRecord.of(read_checkpoint(best)).apply_to(kept)
    DataRecord.of(read_checkpoint(best)).apply_to(padded)
    for one, other in zip(kept.test_dataloader(), padded.test_dataloader(), strict=True):
        assert torch.equal(one[0], other[0])
    monkeypatch.setattr("cnn_lightning.data.base.read_pictures", spy := Spy())
    predict = ["predict", *options, *quiet, "--ckpt_path", best, "--data.predict_dir", "root/test"]
    assert main(predict) == 0
    assert spy.fit == "pad"
    capsys.readouterr()
    assert main([*fit, "--data.fit", "squeeze", "--ckpt_path", best, "--trainer.max_epochs", "2"]) == 2
    assert "data.fit: expected that of the checkpoint, pad, got squeeze" in capsys.readouterr().err
    assert main([*fit, "--data.fit", "stretch"]) == 2
    assert "data.fit: expected squeeze, pad or null, got 'stretch'" in capsys.readouterr().err


class Spy:
    """Reads pictures, and keeps how they became square."""

    fit = ""

    def __call__(self, files: list[Path], size: int, grey: bool, value_range: Any, fit: Any) -> Any:
        self.fit = fit
        return data_pictures.read_pictures(files, size, grey, value_range, fit=fit)


def test_a_checkpoint_of_an_earlier_version_was_squeezed() -> None:
    known = {"class_names": ("a",), "mean": (0.5,), "std": (0.5,)}
    assert DataRecord.of({"data": known}).fit is None
    with pytest.raises(UserError, match="ckpt_path: expected what this program keeps of the data"):
        DataRecord.of({"data": known | {"fit": "stretched"}})
