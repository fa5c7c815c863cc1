"""Image sets: the real file formats, every sample once, and one line for every damaged file."""

import csv
import os
import pickle
import signal
import struct
from collections.abc import Iterator
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_lightning.callbacks.results import Predictions
from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.data import CIFAR10, MNIST, Digits, FashionMNIST, ImageFolder, pictures
from cnn_lightning.data.loader import Batches
from cnn_lightning.data.order import permutation, stratified
from cnn_lightning.data.pictures import read_picture, read_pictures
from cnn_lightning.data.readers import read_digits, read_idx, read_mnist
from cnn_lightning.errors import UserError
from cnn_lightning.plain import weights
from tests.stand_ins import write_cifar10, write_idx, write_idx_set, write_pictures


def batches(n: int = 23, **options: object) -> Batches:
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 4, 4).contiguous()
    settings: dict[str, object] = {"batch_size": 5, "mean": (0.0,), "std": (1.0,), "seed": 0} | options
    return Batches(images, torch.arange(n), **settings)  # type: ignore[arg-type]


def labels(loader: Batches) -> list[int]:
    return [int(label) for _, batch in loader for label in batch]


def test_order_is_numpys_permutation_of_seed_and_epoch() -> None:
    expected = np.random.default_rng([3, 7]).permutation(10)
    assert np.array_equal(permutation(10, 3, 7), expected)


def test_an_epoch_has_every_sample_once_and_its_own_order() -> None:
    loader = batches()
    orders = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        orders.append(labels(loader))
        assert sorted(orders[-1]) == list(range(23))
        assert orders[-1] == permutation(23, 0, epoch).tolist()
    assert orders[0] != orders[1]


def test_an_iterator_that_is_never_exhausted_does_not_shorten_the_next_epoch() -> None:
    """Lightning stops after len(loader) batches without asking for one more."""
    loader = batches()
    iterator = iter(loader)
    for _ in range(len(loader)):
        next(iterator)
    assert len(labels(loader)) == 23


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("augment", [False, True])
def test_ranks_share_each_global_batch_of_one_process(world_size: int, augment: bool) -> None:
    whole = batches(batch_size=12, augment=augment, flip=augment)
    ranks = [
        batches(batch_size=12 // world_size, augment=augment, flip=augment, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {len(rank) for rank in ranks} == {len(whole)}
    for expected, *shares in zip(whole, *ranks, strict=True):
        for index in range(2):
            assert torch.equal(torch.cat([share[index] for share in shares]), expected[index])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_without_a_seed_the_batches_are_those_of_one_process(world_size: int) -> None:
    """Whole batches are distributed: no answer depends on the number of processes. Each gets as many, some empty."""
    dealt: list[list[int]] = []
    for index, batch in enumerate(batches(seed=None)):
        assert torch.equal(batch[1], torch.arange(5 * index, min(23, 5 * index + 5)))
        dealt.append(batch[1].tolist())
    for rank in range(world_size):
        loader = batches(seed=None, rank=rank, world_size=world_size)
        found = [labels.tolist() for _, labels in loader]
        assert len(found) == len(loader) == -(-5 // world_size)
        assert found == [indices.tolist() for indices in loader.indices()]
        assert [batch for batch in found if batch] == dealt[rank::world_size]


@pytest.mark.parametrize("stop", [0, 1, 4, 5])
def test_goes_on_where_it_stood(stop: int) -> None:
    loader = batches(augment=True)
    loader.set_epoch(2)
    iterator = iter(loader)
    before = [next(iterator) for _ in range(stop)]
    state = loader.state_dict() if stop else {"handed_out": 0}
    fresh = batches(augment=True)
    fresh.load_state_dict(state)
    fresh.set_epoch(2)
    rest = list(fresh)
    if stop < len(loader):
        for a, b in zip([*before, *rest], loader, strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])
    else:
        assert len(rest) == len(loader)


def test_augmentation_shifts_by_at_most_two_pixels() -> None:
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 255
    loader = Batches(
        image.expand(200, 1, 9, 9).contiguous(),
        torch.zeros(200, dtype=torch.int64),
        batch_size=200,
        mean=(0.0,),
        std=(1.0,),
        seed=0,
        augment=True,
    )
    found, _ = next(iter(loader))
    places = {(row, column) for _, _, row, column in found.nonzero().tolist()}
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}


def test_stratified_parts_are_disjoint_and_keep_the_shares() -> None:
    classes = np.repeat(np.arange(4), 50)
    parts = stratified(classes, (0.6, 0.2, 0.2), 0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    for part, count in zip(parts, (30, 10, 10), strict=True):
        assert np.bincount(classes[part]).tolist() == [count] * 4


def test_digits_are_whole_and_their_constants_are_the_splits() -> None:
    found = read_digits()
    assert sum(len(split.labels) for split in (found.train, found.val, found.test)) == 1797
    assert found.train.images.shape[1:] == (1, 8, 8)
    assert found.train.images.max() == 255
    assert found.train.images.mean() / 255 == pytest.approx(found.mean[0], abs=1e-4)
    assert found.train.images.std() / 255 == pytest.approx(found.std[0], abs=1e-4)


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_idx_sets(kind: type[MNIST], tmp_path: Path) -> None:
    write_idx_set(tmp_path, kind.name)
    data = kind(str(tmp_path), batch_size=8)
    data.prepare_data()
    data.setup()
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (8, 1, 28, 28)
    assert images.dtype == torch.float32
    assert len(labels(data.test_dataloader())) == 60


def test_cifar10(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    data = CIFAR10(str(tmp_path), batch_size=8)
    data.prepare_data()
    data.setup()
    assert next(iter(data.train_dataloader()))[0].shape == (8, 3, 32, 32)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-7],
            "header": content[:5],
            "magic": b"\x1f\x8b\x08\x00" + content[4:],
            "long": content + b"x",
        }[how]
    )


@pytest.mark.parametrize("how", ["cut", "header", "magic", "long"])
def test_a_damaged_idx_file_is_named(how: str, tmp_path: Path) -> None:
    write_idx_set(tmp_path, "MNIST")
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    damage(path, how)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte: expected .* got") as error:
        read_mnist(tmp_path)
    assert "\n" not in str(error.value)


def test_other_mistakes_in_idx_sets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.root: expected a folder that holds MNIST/raw"):
        read_mnist(tmp_path)
    with pytest.raises(UserError, match="found none"):
        read_idx(tmp_path / "nothing", axes=1)
    write_idx_set(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", np.zeros(5))
    with pytest.raises(UserError, match="expected as many train labels as images"):
        read_mnist(tmp_path)
    write_idx(tmp_path / "MNIST/raw/train-images-idx3-ubyte", np.zeros((5, 32, 32)))
    with pytest.raises(UserError, match="expected train images of 28x28 pixels, got 32x32"):
        read_mnist(tmp_path)
    write_idx_set(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", np.full(120, 200))
    with pytest.raises(UserError, match="labels from 0 to 9, got 200"):
        read_mnist(tmp_path)


def test_an_idx_file_whose_shape_is_beyond_all_bounds_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(struct.pack(">4I", 0x803, 2**31, 2**31, 4))  # 2^64 bytes, which is 0 in 64 bits
    with pytest.raises(UserError, match=rf"file: expected {2**64 + 16} bytes .* got 16: damaged"):
        read_idx(tmp_path / "file", axes=3)


class Source:
    """A data set of torchvision that is downloaded completely, incompletely, or not at all."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def __call__(self, root: str, download: bool) -> None:
        folder = Path(root) / "MNIST" / "raw"
        folder.mkdir(parents=True)
        (folder / "first").write_text("half")
        if self.error is not None:
            raise self.error
        (folder / "second").write_text("whole")


@pytest.mark.parametrize(
    "error", [RuntimeError("no\nnetwork"), OSError("disk full"), IncompleteRead(b""), KeyboardInterrupt()], ids=repr
)
@pytest.mark.parametrize("root", ["new/folder", "there"])
def test_a_download_that_fails_leaves_nothing_behind(
    error: BaseException, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "own.txt").write_text("kept")
    monkeypatch.setattr(MNIST, "source", Source(error))
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError) as told:
        MNIST(str(tmp_path / root)).prepare_data()
    if isinstance(told.value, UserError):
        assert "expected a folder that holds MNIST/raw, found none in" in str(told.value)
        assert "\n" not in str(told.value)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["there", "there/own.txt"]


def test_a_download_appears_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "source", Source(None))
    MNIST(str(tmp_path / "new")).prepare_data()
    assert sorted(path.name for path in (tmp_path / "new").rglob("*")) == ["MNIST", "first", "raw", "second"]


def test_a_missing_cifar_batch_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(UserError, match="test_batch: expected a batch of CIFAR-10, found none"):
        CIFAR10(str(tmp_path)).setup()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x02cos\nsystem\n(S'true'\ntR."])
def test_a_damaged_or_dangerous_cifar_batch_is_named(content: bytes, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(content)
    data = CIFAR10(str(tmp_path))
    with pytest.raises(UserError, match="data_batch_3: expected a batch of CIFAR-10, but it is damaged"):
        data.setup()


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("data", np.full((20, 3072), 0.5), r"expected data of uint8 \(n, 3072\), got float64 \(20, 3072\)"),
        ("data", np.full((20, 3072), 300), r"expected data of uint8 \(n, 3072\), got int64"),
        (
            "data",
            np.zeros((20, 3, 32, 32), np.uint8),
            r"expected data of uint8 \(n, 3072\), got uint8 \(20, 3, 32, 32\)",
        ),
        ("data", [[0] * 3072] * 20, r"expected data of uint8 \(n, 3072\), got a list"),
        ("labels", [0.5] * 20, r"expected labels of whole numbers \(n,\), got float64 \(20,\)"),
        ("labels", [[1]] * 20, r"expected labels of whole numbers \(n,\), got int64 \(20, 1\)"),
        ("labels", [True] * 20, r"expected labels of whole numbers \(n,\), got bool"),
        ("labels", [1] * 19, r"expected a label from 0 to 9 for each of 20 images"),
        ("labels", [11] * 20, r"expected a label from 0 to 9 for each of 20 images"),
    ],
)
def test_a_cifar_batch_of_other_values_is_refused_not_cast(part: str, value: Any, words: str, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    batch = {"data": np.zeros((20, 3072), np.uint8), "labels": [0] * 20, part: value}
    with (tmp_path / "cifar-10-batches-py/data_batch_2").open("wb") as file:
        pickle.dump(batch, file, protocol=2)
    with pytest.raises(UserError, match=rf"data_batch_2: {words}"):
        CIFAR10(str(tmp_path)).setup()


@pytest.fixture
def in_a_moment() -> Iterator[None]:
    """End a test that waits for ever."""

    def end(*_: Any) -> None:
        raise TimeoutError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.usefixtures("in_a_moment")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_in_place_of_a_file_is_refused(kind: str, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    write_idx_set(tmp_path, "MNIST")
    write_pictures(tmp_path / "pictures", n=10)
    places = [
        tmp_path / "cifar-10-batches-py/data_batch_2",
        tmp_path / "MNIST/raw/train-labels-idx1-ubyte",
        tmp_path / "weights.npz",
        tmp_path / "pictures/cat/zero.png",
    ]
    for path in places:
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
    words = "it is a pipe, a socket or a device, no file"
    with pytest.raises(UserError, match=rf"data_batch_2: can't be read: {words}"):
        CIFAR10(str(tmp_path)).setup()
    with pytest.raises(UserError, match=rf"train-labels-idx1-ubyte: can't be read: {words}"):
        MNIST(str(tmp_path)).setup()
    with pytest.raises(UserError, match=rf"--weights: .*{words}"):
        weights.load(places[2], {})
    with pytest.raises(UserError, match=rf"zero.png: expected a picture, but {words}"):
        read_picture(places[3], 8, grey=False)
    data = ImageFolder(str(tmp_path / "pictures"), image_size=8)
    data.setup()
    assert sum(len(labels) for _, labels in data._splits.values()) == 20
    assert main(["explain", "--ckpt_path", str(places[2])]) == 2
    assert main(["test", "--ckpt_path", str(places[2])]) == 2
    assert main(["fit", "--config", str(places[2])]) == 2


# ---- pictures of one's own


def test_a_folder_is_split_and_its_names_kept(tmp_path: Path) -> None:
    write_pictures(tmp_path, ("katze", "собака", "鳥"))
    data = ImageFolder(str(tmp_path), image_size=16, batch_size=4)
    assert data.num_classes == 3
    data.setup()
    assert data.class_names == tuple(sorted(("katze", "собака", "鳥")))
    counts = [
        len(labels(loader)) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]
    assert sum(counts) == 30
    assert min(counts) > 0
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 16, 16)


def test_folders_for_each_split_are_taken(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        write_pictures(tmp_path / name, n=3)
    data = ImageFolder(str(tmp_path), image_size=8, grey=True)
    data.setup()
    assert next(iter(data.test_dataloader()))[0].shape == (6, 1, 8, 8)


def test_unlabelled_pictures_keep_their_names(tmp_path: Path) -> None:
    write_pictures(tmp_path, ("x",), n=3)
    data = Digits(predict_dir=str(tmp_path / "x"))
    data.setup()
    assert [path.name for path in data.predict_files()] == ["0.png", "1.png", "2.png"]
    assert next(iter(data.predict_dataloader()))[0].shape == (3, 1, 8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pictures_of_every_mode_are_read(mode: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{'tif' if mode in ('CMYK', 'F', 'I', 'LA') else 'png'}"
    if mode == "I;16":
        Image.fromarray(np.full((9, 7), 32768, np.uint16)).save(path)
    else:
        Image.new("L", (7, 9), 128).convert(mode).save(path)
    assert read_picture(path, 5, grey=False).shape == (3, 5, 5)
    grey = read_picture(path, 5, grey=True)
    assert grey.shape == (1, 5, 5)
    if mode in ("L", "RGB", "I;16"):
        assert abs(int(grey.mean()) - 128) <= 1


def test_transparent_is_white_and_exif_turns(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png", 4, grey=True).min() == 255
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    found = read_picture(tmp_path / "turned.png", 8, grey=True)
    assert found[0, :4].max() == 0
    assert found[0, 4:].min() == 255


def test_files_that_are_no_pictures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path)
    path = tmp_path / "cat" / "3.png"
    whole = path.read_bytes()
    for content, words in ((b"text", "none that can be read"), (whole[:-40], "it is damaged"), (b"", "none that can")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"3\.png: expected a picture, but .*{words}"):
            ImageFolder(str(tmp_path)).setup()
    path.write_bytes(whole)
    with Image.open(path) as picture:
        size = picture.size
    for factor in (0.6, 0.4):  # Pillow warns of the one and refuses the other
        most = int(size[0] * size[1] * factor)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(UserError, match=rf"3\.png: expected a picture of fewer than {most} pixels"):
            read_pictures([path] * 9, 8, grey=False)


def test_mistakes_in_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.root: expected a folder of class folders"):
        ImageFolder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="expected a folder for each class"):
        ImageFolder(str(tmp_path))
    (tmp_path / "empty").mkdir()
    write_pictures(tmp_path, ("cat",), n=1)
    with pytest.raises(UserError, match="empty: expected at least one picture"):
        ImageFolder(str(tmp_path)).setup()
    (tmp_path / "empty").rmdir()
    with pytest.raises(UserError, match=r"expected folders of at least two classes in .*, found only 'cat'"):
        ImageFolder(str(tmp_path))
    write_pictures(tmp_path, ("dog",), n=1)
    with pytest.raises(UserError, match="expected enough pictures"):
        ImageFolder(str(tmp_path)).setup()
    for options, words in (
        ({"val_fraction": 0.9}, "val_fraction"),
        ({"image_size": 0}, "image_size: expected at least"),
    ):
        with pytest.raises(UserError, match=words):
            ImageFolder(str(tmp_path), **options)
    with pytest.raises(UserError, match=r"predict_dir: expected a folder"):
        Digits(predict_dir=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["two\nlines", "no encoding \udcff"], ids=["line break", "bytes"])
def test_a_class_that_no_table_could_name_is_refused(name: str, tmp_path: Path) -> None:
    try:
        write_pictures(tmp_path, (name,))
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(UserError, match="expected class folders with printable names") as error:
        ImageFolder(str(tmp_path))
    assert "\n" not in str(error.value)


def test_links_that_lead_nowhere_or_round_are_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path, ("cat",), n=2)
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere")
    (tmp_path / "cat" / "round.png").symlink_to("round.png")
    (tmp_path / "cat" / "again").symlink_to(".")
    assert len(pictures.find_pictures(tmp_path / "cat")) == 2


def test_predictions_name_every_file_whatever_it_is_called(tmp_path: Path) -> None:
    names = ["鳥.png", 'a comma, a "quote".png', "two\nlines.png", "no encoding \udcff.png"]
    predictions = Predictions()
    predictions.rows = dict.fromkeys(range(len(names)), ("cat", 0.5))
    trainer = SimpleNamespace(
        log_dir=str(tmp_path),
        loggers=[None],
        is_global_zero=True,
        datamodule=SimpleNamespace(predict_files=lambda: names),
    )
    predictions.on_predict_end(trainer, Classifier())  # type: ignore[arg-type]
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [row["file"] for row in csv.DictReader(file)] == names


def test_a_folder_without_pictures_to_predict_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=r"predict_dir: expected at least one picture in .* found none"):
        Digits(predict_dir=str(tmp_path)).predict_files()


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    write_pictures(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "real" / name)
    data = ImageFolder(str(tmp_path / "linked"), image_size=8)
    data.setup()
    assert data.num_classes == 2


def test_pictures_that_do_not_fit_are_read_by_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path)
    held = ImageFolder(str(tmp_path), image_size=8, batch_size=4)
    held.setup()
    monkeypatch.setattr(pictures, "MEMORY", 100)
    read = ImageFolder(str(tmp_path), image_size=8, batch_size=4)
    read.setup()
    assert read.train_dataloader().num_workers == 2
    for a, b in zip(held.train_dataloader(), read.train_dataloader(), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
