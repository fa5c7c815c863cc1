"""Data that changed since a checkpoint was trained: known pictures stay in their split, classes must be the same, and
one line reports what differs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image

from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.data import CIFAR10, MNIST, Digits, ImageFolder
from cnn_lightning.data.base import InMemory
from cnn_lightning.data.order import stratified
from cnn_lightning.data.record import DataRecord
from cnn_lightning.data.sides import SIDES, Keys, array_keys, divide, file_keys, merged
from cnn_lightning.errors import UserError
from tests.processes import ranks
from tests.stand_ins import write_cifar10, write_idx_set, write_pictures

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*logging interval.*",
    "ignore:.*lr_scheduler.step.*",
)

CKPT = "runs/imagefolder/version_0/checkpoints/last.ckpt"
SMALL: dict[str, Any] = {"image_size": 8, "grey": True, "batch_size": 4}
NET: dict[str, Any] = {"layers": "torch", "num_classes": 2, "image_size": 8, "channels": (2, 2), "hidden": 4}
FLAGS = ["--data", "ImageFolder", "--data.image_size", "8", "--data.grey", "true", "--data.batch_size", "4"]
NETWORK = ["--model.layers", "torch", "--model.channels", "[2,2]", "--model.hidden", "4"]
QUIET = ["--trainer.enable_progress_bar", "false"]


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8 + value % 5), value, np.uint8)).save(path)


def trainer(**options: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **quiet, **options)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    write_pictures(folder / "pictures", n=20)
    train(ImageFolder(str(folder / "pictures"), **SMALL), folder / "trained.ckpt")
    return folder


@pytest.fixture
def trained(once: Path, here: Path) -> Path:
    """A checkpoint whose network was trained with ``pictures``, 20 of each class."""
    shutil.copytree(once, here, dirs_exist_ok=True)
    return Path("trained.ckpt")


def train(data: InMemory, path: Path = Path("trained.ckpt")) -> Path:
    trains = trainer(max_epochs=1)
    trains.fit(Classifier(**NET), data)
    trains.save_checkpoint(path)
    return path


def classifier_that_tested(checkpoint: Path, data: LightningDataModule) -> Classifier:
    model = Classifier(**NET)
    trainer().test(model, data, ckpt_path=checkpoint, verbose=False, weights_only=True)
    return model


def named(data: InMemory) -> dict[str, set[bytes]]:
    """The pictures of each side by their pixels, which are all different."""
    pictures = {name: data._splits[name][0] for name in SIDES}
    return {
        name: {bytes(image.numpy().tobytes()) for image in images}
        for name, images in pictures.items()
        if isinstance(images, torch.Tensor)
    }


# ---- which side a picture is on


def test_the_first_split_is_that_of_all_versions(here: Path) -> None:
    """70 : 15 : 15 of every class by the data's seed, in the order of the sorted files."""
    write_pictures(here, n=20)
    data = ImageFolder(str(here), seed=3, **SMALL)
    data.setup()
    files = [path for name in ("cat", "dog") for path in sorted((here / name).iterdir())]
    expected = stratified(np.repeat([0, 1], 20), (1 - 0.15 - 0.15, 0.15, 0.15), 3)
    for name, part in zip(SIDES, expected, strict=True):
        assert np.array_equal(data._now[name], file_keys([files[index] for index in part], here))


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "nothing": lambda root: {},
    "a picture more": lambda root: picture(root / "cat" / "00.png", 7) or {},  # type: ignore[func-returns-value]
    "a picture less": lambda root: (root / "cat" / "7.png").unlink() or {},  # type: ignore[func-returns-value]
    "another seed": lambda root: {"seed": 5},
    "other shares": lambda root: {"val_fraction": 0.3, "test_fraction": 0.4},
    "moved": lambda root: {"root": str(shutil.move(root, root.with_name("elsewhere")))},
}


@pytest.mark.parametrize(
    ("command", "change"),
    [
        *(("test", change) for change in CHANGES),
        *(("fit", change) for change in ("nothing", "a picture more", "other shares")),
        ("validate", "another seed"),
        ("predict", "another seed"),
    ],
)
def test_no_picture_changes_its_side(change: str, command: str, trained: Path, here: Path) -> None:
    first = ImageFolder("pictures", **SMALL)
    first.setup()
    before = named(first)
    data = ImageFolder(**{"root": "pictures", **SMALL, **CHANGES[change](here / "pictures")})
    model = Classifier(**NET)
    if command == "fit":
        trainer(max_epochs=2).fit(model, data, ckpt_path=trained, weights_only=True)
    else:
        options = {} if command == "predict" else {"verbose": False}
        getattr(trainer(), command)(model, data, ckpt_path=trained, weights_only=True, **options)
    after = named(data)
    known = set().union(*before.values())
    for name in SIDES:
        assert after[name] & known <= before[name]
    new = set().union(*after.values()) - known
    assert len(new) == (change == "a picture more")
    lost = known - set().union(*after.values())
    assert len(lost) == (change == "a picture less")


def test_what_a_resumed_run_adds_is_known_from_then_on(trained: Path, here: Path) -> None:
    for index in range(20):
        picture(here / "pictures" / "cat" / f"new{index}.png", index)
    data = ImageFolder("pictures", **SMALL)
    goes_on = trainer(max_epochs=2)
    goes_on.fit(Classifier(**NET), data, ckpt_path=trained, weights_only=True)
    goes_on.save_checkpoint("second.ckpt")
    assert {name: len(keys) for name, keys in data.sides.items()} == {"train": 42, "val": 9, "test": 9}
    kept = DataRecord.of(read_checkpoint("second.ckpt")).sides
    for name in SIDES:
        assert np.array_equal(kept[name], data.sides[name])
    again = ImageFolder("pictures", seed=9, **SMALL)
    classifier_that_tested(Path("second.ckpt"), again)
    assert named(again) == named(data)


def test_a_checkpoint_keeps_eight_bytes_a_picture(trained: Path) -> None:
    kept = torch.load(trained, weights_only=True)["data"]["pictures"]
    assert {name: (keys.dtype, len(keys)) for name, keys in kept.items()} == {
        "train": (torch.int64, 28),
        "val": (torch.int64, 6),
        "test": (torch.int64, 6),
    }


def test_trained_pictures_in_a_test_folder_are_left_out_and_counted(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, n in (("train", 9), ("test", 5)):
        for label in ("cat", "dog"):
            for index in range(n):
                picture(here / "root" / name / label / f"{name}{index}.png", 20 * index + (label == "dog") + 3)
    checkpoint = train(ImageFolder("root", **SMALL))
    known = DataRecord.of(read_checkpoint(checkpoint)).sides
    train_cats = sorted((here / "root/train/cat").iterdir())
    keys = file_keys(train_cats, here / "root/train")
    moved = [path for path, key in zip(train_cats, keys, strict=True) if key in known["train"]][:3]
    for path in moved[:2]:
        path.rename(here / "root/test/cat" / path.name)
    shutil.copy(moved[2], here / "root/test/cat")
    capfd.readouterr()
    data = ImageFolder("root", **SMALL)
    classifier_that_tested(checkpoint, data)
    assert len(data._splits["test"][1]) == 10
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cnn-lightning")]
    assert told == ["cnn-lightning: 3 of 13 pictures in root/test are left out: they were trained with"]
    for path in (here / "root/test/cat").glob("test*"):
        path.unlink()
    for path in (here / "root/test/dog").iterdir():
        path.unlink()
    shutil.copy(here / "root/train/dog/train0.png", here / "root/test/dog")
    for index in range(9):
        if file_keys([here / f"root/train/dog/train{index}.png"], here / "root/train")[0] in known["train"]:
            shutil.copy(here / f"root/train/dog/train{index}.png", here / "root/test/dog")
        else:
            (here / f"root/test/dog/train{index}.png").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"root/test: expected pictures that were not trained with, found none"):
        classifier_that_tested(checkpoint, ImageFolder("root", **SMALL))


def test_validation_pictures_can_become_test_pictures(here: Path) -> None:
    for name in ("train", "val"):
        write_pictures(here / "root" / name, n=10 if name == "train" else 4)
    for path in (here / "root/val").rglob("*.png"):  # not the bytes of the training pictures of the same name
        picture(path, len(path.name))
    checkpoint = train(ImageFolder("root", **SMALL))
    (here / "root/val").rename(here / "root/test")
    data = ImageFolder("root", **SMALL)
    classifier_that_tested(checkpoint, data)
    assert len(data._splits["test"][1]) == 8
    with pytest.raises(UserError, match=r"to keep some for val beside those that .* trained with"):
        trainer(max_epochs=2).fit(
            Classifier(**NET), ImageFolder("root", **SMALL), ckpt_path=checkpoint, weights_only=True
        )


def test_numbered_pictures_of_one_size_are_distinguished(here: Path) -> None:
    """As in sets written as bitmaps: every split has the same names, and all files are of one size."""
    for number, name in enumerate(("train", "val", "test")):
        for label in ("cat", "dog"):
            for index in range(4):
                path = here / "root" / name / label / f"{index}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8), 50 * number + 10 * index + len(label), np.uint8)).save(path)
    checkpoint = train(ImageFolder("root", **SMALL))
    shutil.copytree(here / "root/test", here / "other")
    for path in (here / "root/test").rglob("*.bmp"):
        path.rename(path.with_stem(f"1{path.stem}"))
    for path in (here / "other").rglob("*.bmp"):
        Image.fromarray(np.full((8, 8), 200, np.uint8)).save(
            here / "root/test" / path.relative_to(here / "other").with_stem(path.stem)
        )
    data = ImageFolder("root", **SMALL)
    classifier_that_tested(checkpoint, data)
    assert len(data._splits["test"][1]) == 16


@pytest.mark.parametrize("kind", ["load_from_checkpoint", "the same model"])
def test_a_model_in_python_brings_its_record(kind: str, trained: Path) -> None:
    """Without ckpt_path: the model knows what it was trained with."""
    model = Classifier.load_from_checkpoint(trained, weights_only=True, layers="torch")
    if kind == "the same model":
        model = Classifier(**NET)
        trainer(max_epochs=1).fit(model, ImageFolder("pictures", **SMALL))
    first = ImageFolder("pictures", **SMALL)
    first.setup()
    data = ImageFolder("pictures", seed=7, **SMALL)
    trainer().test(model, data, verbose=False)
    assert named(data) == named(first)
    assert data.mean == model.mean
    fits = ImageFolder("pictures", seed=7, **SMALL)
    trainer(max_epochs=1).fit(model, fits)
    assert named(fits) == named(first)


def test_another_network_begins_with_a_split_of_its_own(trained: Path) -> None:
    data = ImageFolder("pictures", seed=7, **SMALL)
    data.setup()
    own, mean = named(data), data.mean
    classifier_that_tested(trained, data)
    assert named(data) != own
    trainer(max_epochs=1).fit(Classifier(**NET), data)
    assert named(data) == own
    assert data.mean == mean


class Late(SingleDeviceStrategy):
    """Reads a checkpoint after the loaders were made, as sharded strategies do."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


def test_a_strategy_that_restores_late_trains_with_the_right_side(trained: Path) -> None:
    seen: list[bytes] = []

    class Watched(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            unseen = (batch[0] * torch.tensor(self.std) + torch.tensor(self.mean)) * 255
            seen.extend(bytes(image.round().byte().numpy().tobytes()) for image in unseen)
            return super().training_step(batch, index)

    data = ImageFolder("pictures", seed=11, augment=False, **SMALL)
    fits = trainer(max_epochs=2, strategy=Late("cpu"))
    fits.fit(Watched(**NET), data, ckpt_path=trained)
    assert set(seen) == named(data)["train"]
    first = ImageFolder("pictures", **SMALL)
    first.setup()
    assert named(first) == named(data)


def test_a_folder_of_other_pictures_is_split_as_a_first_one(trained: Path, here: Path) -> None:
    for label in ("cat", "dog"):
        for index in range(20):
            picture(here / "others" / label / f"other{index}.png", 10 * index + len(label))
    data, fresh = (ImageFolder("others", **SMALL) for _ in range(2))
    classifier_that_tested(trained, data)
    fresh.setup()
    assert named(data) == named(fresh)


# ---- sets that are arrays


@pytest.mark.parametrize("kind", [Digits, MNIST, CIFAR10])
def test_arrays_are_known_by_their_place(kind: type[InMemory], tmp_path: Path) -> None:
    write_idx_set(tmp_path, "MNIST")
    write_cifar10(tmp_path)
    options = {} if kind is Digits else {"root": str(tmp_path)}
    first, moved = kind(**options), kind(**options)  # type: ignore[arg-type]
    first.setup()
    moved.setup()
    sides = dict(first.sides)
    assert len(np.unique(np.concatenate(list(sides.values())))) == sum(map(len, sides.values()))
    swapped = sides["train"][:2].copy(), sides["val"][:2].copy()
    sides["train"], sides["val"] = (
        np.concatenate([new, side[2:]]) for new, side in zip(swapped[::-1], (sides["train"], sides["val"]), strict=True)
    )
    moved.go_on_from(DataRecord(sides=sides))
    for name in SIDES:
        assert set(moved._now[name].tolist()) == set(sides[name].tolist())
    labels = first._splits["train"][1]
    assert torch.equal(moved._splits["train"][1].sort()[0].bincount().sum(), labels.bincount().sum())


def test_arrays_of_other_names_share_no_key() -> None:
    assert not set(array_keys("MNIST/train", 60000).tolist()) & set(array_keys("FashionMNIST/train", 60000).tolist())


def test_new_pictures_are_divided_among_themselves() -> None:
    labels = np.repeat([0, 1], 100)
    keys = array_keys("a", 200)
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    first = divide(labels[::2], shares, 0, keys[::2], {})
    known = {name: keys[::2][part] for name, part in first.items()}
    found = divide(labels, shares, 1, keys, known)
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(200))
    for name, count in (("train", 120), ("val", 40), ("test", 40)):
        assert len(found[name]) == count
        assert set(known[name].tolist()) <= set(keys[found[name]].tolist())


def test_what_was_trained_with_stays_so_whatever_else_is_known() -> None:
    def keys(*values: int) -> Keys:
        return np.array(values, np.int64)

    both = {"train": keys(1, 2), "val": keys(2, 3), "test": keys(4)}
    cut = divide(np.zeros(5, np.int64), {"train": 0.5, "val": 0.25, "test": 0.25}, 0, keys(1, 2, 3, 4, 4), both)
    assert {name: part.tolist() for name, part in cut.items()} == {"train": [0, 1], "val": [2], "test": [3, 4]}
    after = merged({"train": keys(3), "val": keys(), "test": keys(4)}, both)
    assert {name: part.tolist() for name, part in after.items()} == {"train": [1, 2, 3], "val": [2], "test": [4]}


# ---- the classes


def test_a_renamed_class_is_refused_by_every_command(trained: Path, here: Path) -> None:
    (here / "pictures/cat").rename(here / "pictures/zebra")
    for name in ("fit", "validate", "test", "predict"):
        options = {"max_epochs": 2} if name == "fit" else {}
        with pytest.raises(UserError) as told:
            getattr(trainer(**options), name)(
                Classifier(**NET), ImageFolder("pictures", **SMALL), ckpt_path=trained, weights_only=True
            )
        assert str(told.value) == "data: expected the checkpoint's classes in their order, cat, dog, got dog, zebra"
    model = Classifier.load_from_checkpoint(trained, weights_only=True, layers="torch")
    for name in ("validate", "test", "predict"):
        with pytest.raises(UserError, match=r"cat, dog, got dog, zebra"):
            getattr(trainer(), name)(model, ImageFolder("pictures", **SMALL))


def test_one_model_after_another_is_tested_with_its_own_classes(trained: Path, here: Path) -> None:
    """A model that knows other classes may load a checkpoint of these, or learn these."""
    write_pictures(here / "others", ("oak", "pine"), n=20)
    model = Classifier(**NET)
    trainer(max_epochs=1).fit(model, ImageFolder("others", **SMALL))
    trainer().test(model, ImageFolder("pictures", **SMALL), ckpt_path=trained, verbose=False, weights_only=True)
    assert model.class_names == ("cat", "dog")
    trainer(max_epochs=1).fit(model, ImageFolder("others", **SMALL))
    assert model.class_names == ("oak", "pine")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (("b", "a"), r"in their order, a, b, got b, a$"),
        (("a", "b", "c"), r"in their order, a, b, got a, b, c$"),
    ],
)
def test_both_orders_are_named(found: tuple[str, ...], words: str) -> None:
    class Data:
        class_names = found

    with pytest.raises(UserError, match=words):
        DataRecord(("a", "b"), (0.5,), (0.5,)).apply_to(Data())


def test_of_many_classes_the_first_that_differs_is_named() -> None:
    class Data:
        class_names = tuple(f"class {number}" for number in (*range(500), 501, 500, *range(502, 1000)))

    record = DataRecord(tuple(f"class {number}" for number in range(1000)), (0.5,), (0.5,))
    difference = record.differs_from(Data())
    assert difference.endswith("from number 500 on: expected class 500, got class 501")
    assert len(difference) < 200


def test_data_without_names_and_networks_without_data_differ_in_nothing() -> None:
    assert not DataRecord(("a",), (0.5,), (0.5,)).differs_from(object())
    assert not DataRecord(("a",), (0.5,), (0.5,)).differs_from(None)
    unnamed = DataRecord.of({"data": {"class_names": ("0", "1"), "mean": (), "std": ()}})
    assert not unnamed.differs_from(Digits())


@pytest.mark.parametrize("pictures", [3, {"train": torch.zeros(3)}, {"train": [1], "val": [2], "test": [3]}])
def test_a_record_of_something_else_is_refused(pictures: Any) -> None:
    known = {"class_names": ("a",), "mean": (0.5,), "std": (0.5,), "pictures": pictures}
    with pytest.raises(UserError, match=r"ckpt_path: expected what this program keeps of the data"):
        DataRecord.of({"data": known})


# ---- on the command line


def cli(*args: str) -> int:
    return main([args[0], *FLAGS, *args[1:], *QUIET])


def test_from_the_command_line(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_pictures(here / "pictures", n=20)
    root = ["--data.root", "pictures"]
    assert cli("fit", *root, *NETWORK, "--trainer.max_epochs", "1", "--pictures", "false") == 0
    counts = (here / "runs/imagefolder/version_0/confusion.csv").read_text()
    (here / "pictures").rename(here / "moved")
    picture(here / "moved" / "cat" / "00.png", 7)  # on the training side
    assert cli("test", "--data.root", "moved", "--data.seed", "4", "--ckpt_path", CKPT) == 0
    assert (here / "runs/imagefolder-test/version_0/confusion.csv").read_text() == counts

    capfd.readouterr()
    (here / "moved/cat").rename(here / "moved/zebra")
    config = here / "runs/imagefolder/version_0/config.yaml"
    before = config.read_text()
    for command in ("fit", "test", "validate", "predict"):
        assert cli(command, "--data.root", "moved", "--ckpt_path", CKPT) == 2
        error = capfd.readouterr().err.splitlines()
        assert error == [
            "cnn-lightning: error: data: expected the checkpoint's classes in their order, cat, dog, got dog, zebra"
        ]
    assert config.read_text() == before
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["imagefolder", "imagefolder-test"]
    explain = ["explain", "--ckpt_path", CKPT, "--data", "ImageFolder", "--data.root", "moved"]
    assert main(explain) == 2
    assert "cat, dog, got dog, zebra" in capfd.readouterr().err


def test_a_checkpoint_of_version_0_1_is_tested_as_it_was(trained: Path) -> None:
    content = torch.load(trained, weights_only=True)
    content["data"] = {key: content["data"][key] for key in ("class_names", "mean", "std")}
    torch.save(content, "old.ckpt")
    data, fresh = (ImageFolder("pictures", seed=4, **SMALL) for _ in range(2))
    classifier_that_tested(Path("old.ckpt"), data)
    fresh.setup()
    assert named(data) == named(fresh)
    trainer(max_epochs=2).fit(Classifier(**NET), data, ckpt_path="old.ckpt", weights_only=True)


@pytest.mark.ddp
def test_several_processes_agree_and_report_once(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("train", "test")):
        for label in ("cat", "dog"):
            for index in range(11):
                picture(here / "root" / name / label / f"{number}{index}.png", 10 * index + 5 * len(name) + len(label))
    root = ["--data.root", "root", "--data.seed", "3"]
    assert cli("fit", *root, *NETWORK, "--trainer.max_epochs", "1", "--pictures", "false") == 0
    train = sorted((here / "root/train/cat").iterdir())
    known = DataRecord.of(read_checkpoint(CKPT)).sides["train"]
    moved = [path for path, key in zip(train, file_keys(train, here / "root/train"), strict=True) if key in known][:3]
    for path in moved:
        path.rename(here / "root/test/cat" / path.name)
    args = ["--data.root", "root", "--data.seed", "8", "--ckpt_path", CKPT]
    assert cli("test", *args) == 0
    expected = (here / "runs/imagefolder-test/version_0/confusion.csv").read_text()
    assert sum(int(cell) for row in expected.splitlines()[1:] for cell in row.split(",")[1:]) == 22
    runs = ranks(2, ["test", *FLAGS, *args, *QUIET], here)
    assert [run.wait() for run in runs] == [0, 0]
    assert (here / "runs/imagefolder-test/version_1/confusion.csv").read_text() == expected
    screens = "".join(run.text for run in runs)
    assert screens.count("3 of 25 pictures in root/test are left out: they were trained with") == 1
    (here / "root/train/dog").rename(here / "root/train/wolf")
    (here / "root/test/dog").rename(here / "root/test/wolf")
    runs = ranks(2, ["test", *FLAGS, *args, *QUIET], here)
    assert [run.wait() for run in runs] == [2, 2]
    assert "".join(run.text for run in runs).count("in their order, cat, dog, got cat, wolf") == 1
