"""Which folders are splits: the spellings of downloaded sets are understood, and what is unclear is refused."""

from pathlib import Path

import pytest
from PIL import Image

from cnn_lightning.data import ImageFolder
from cnn_lightning.errors import UserError


def write(root: Path, *folders: str) -> None:
    """One picture in each folder; a picture alone where the name has an ending."""
    for name in folders:
        path = root / name if Path(name).suffix else root / name / "0.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("L", (4, 4)).save(path)
        else:
            path.write_text("")


def inside(*splits: str) -> list[str]:
    return [f"{split}/{name}" for split in splits for name in ("cat", "dog")]


UNDERSTOOD = {
    "classes alone": (["cat", "dog"], {}),
    "train alone": (inside("train"), {"train": "train"}),
    "usual": (inside("train", "val", "test"), {"train": "train", "val": "val", "test": "test"}),
    "Keras": (inside("Training", "Testing"), {"train": "Training", "test": "Testing"}),
    "valid": (inside("train", "valid"), {"train": "train", "val": "valid"}),
    "capitals": (inside("TRAIN", "VALIDATION", "TEST"), {"train": "TRAIN", "val": "VALIDATION", "test": "TEST"}),
    "sets": (inside("training_set", "test-set"), {"train": "training_set", "test": "test-set"}),
    "images": (inside("Train Images", "dev"), {"train": "Train Images", "val": "dev"}),
    "notes beside": (
        [*inside("train", "test"), "annotations/a.xml", "__MACOSX/._0.png"],
        {"train": "train", "test": "test"},
    ),
    "valid and invalid parts": (["valid", "invalid"], {}),
    "words in names": (["test tube", "train station", "contest"], {}),
    "folders in classes": (["cat/young", "cat/old", "dog/old"], {}),
    "a class called train": ([f"train/{name}" for name in ("car", "train")], {"train": "train"}),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_understood(name: str, tmp_path: Path) -> None:
    folders, splits = UNDERSTOOD[name]
    write(tmp_path, *folders)
    data = ImageFolder(str(tmp_path))
    found = {"train": data._train.name} if data._train != tmp_path else {}
    assert found | {side: folder.name for side, folder in data._own_folders.items()} == splits
    folder = tmp_path / splits.get("train", "")
    assert data.class_names == tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))


REFUSED = {
    "two for a split": (inside("train", "val", "valid"), r"expected one folder for val in .*, got val, valid"),
    "two spellings": (inside("train", "Train"), r"expected one folder for train in .*, got Train, train"),
    "classes beside": (
        [*inside("train"), "cat"],
        r"only in folders for train, val and test in .*, got cat beside train",
    ),
    "numbered": (inside("train", "test", "test2"), r"got test2 beside train"),
    "no train": (inside("test", "val"), r"of which test, val can be a split"),
    "prefixes": (inside("seg_train", "seg_test"), r"got seg_test, seg_train, of which seg_test, seg_train can be"),
    "years": (inside("train2017", "val2017"), r"of which train2017, val2017 can be a split"),
    "evaluation": (inside("training", "evaluation"), r"got evaluation beside training"),
    "a class called train": (["car", "train", "ship"], r"of which train can be a split"),
    "pictures to predict": (["cat", "dog", "Test"], r"of which Test can be a split"),
    "unlabelled": (["test1", "train1"], r"of which test1, train1 can be a split"),
    "below a folder": ([f"set/{name}" for name in inside("train", "test")], r"but .*set/test looks like a split"),
    "in each class": ([f"{name}/{split}" for name in ("cat", "dog") for split in ("train", "test")], r"cat/test looks"),
    "twice": ([f"training_set/{name}" for name in inside("training_set")], r"training_set/training_set looks like"),
    "flat": (["train", "test"], r"expected a folder for each class in .*train, found none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folders, words = REFUSED[name]
    write(tmp_path, *folders)
    with pytest.raises(UserError, match=words) as told:
        ImageFolder(str(tmp_path))
    assert str(told.value).startswith("data.root: expected ")
    assert "\n" not in str(told.value)


def test_pictures_to_predict_may_lie_beside_the_splits(tmp_path: Path) -> None:
    write(tmp_path, *inside("train"), "unlabelled/new")
    with pytest.raises(UserError, match="got unlabelled beside train"):
        ImageFolder(str(tmp_path))
    data = ImageFolder(str(tmp_path), predict_dir=str(tmp_path / "unlabelled/new"))
    assert data.class_names == ("cat", "dog")


def test_other_spellings_are_read(tmp_path: Path) -> None:
    write(tmp_path, *inside("Train", "valid", "TEST"))
    data = ImageFolder(str(tmp_path), image_size=4)
    data.setup()
    assert [len(data._splits[name][1]) for name in ("train", "val", "test")] == [2, 2, 2]
