"""Pictures of more than 8 bits a value: the range is the data set's, and a loss of values is reported."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from PIL import Image

from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.classifier import Classifier
from cnn_lightning.cli import main
from cnn_lightning.data import Digits, ImageFolder, pictures
from cnn_lightning.data.pictures import find_value_range, read_picture, read_pictures
from cnn_lightning.data.record import DataRecord
from cnn_lightning.data.values import eight_bits
from cnn_lightning.errors import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
SMALL: dict[str, Any] = {"image_size": 8, "grey": True, "batch_size": 4}
NET: dict[str, Any] = {"layers": "torch", "num_classes": 2, "image_size": 8, "channels": (2, 2), "hidden": 4}
RNG = np.random.default_rng(0)
Write = Callable[[Path, NDArray[Any]], None]


def write_png(path: Path, values: NDArray[Any]) -> None:
    """16 bits a value, in grey, grey with opacity, RGB or RGBA, which Pillow can't write."""
    values = values.reshape(*values.shape[:2], -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def write_tiff(path: Path, values: NDArray[Any]) -> None:
    """One strip without compression, in the byte order of the values."""
    samples = values.reshape(*values.shape[:2], -1)
    order = ">" if values.dtype.byteorder == ">" else "<"
    height, width, n = samples.shape
    bits, formats = values.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    photo = 1 if n == 1 else 2
    tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * n), (259, 3, [1]), (262, 3, [photo])]
    tags += [(273, 4, [0]), (277, 3, [n]), (278, 4, [height]), (279, 4, [values.nbytes]), (339, 3, [formats] * n)]
    after = 8 + 2 + 12 * len(tags) + 4
    extra, entries = b"", b""
    start = after + sum(2 * len(found) for _, kind, found in tags if kind == 3 and len(found) > 2)
    for tag, kind, found in tags:
        found = [start] if tag == 273 else found
        content = struct.pack(f"{order}{len(found)}{'H' if kind == 3 else 'I'}", *found)
        if len(content) > 4:
            content, extra = struct.pack(f"{order}I", after + len(extra)), extra + content
        entries += struct.pack(f"{order}HHI", tag, kind, len(found)) + content.ljust(4, b"\0")
    head = struct.pack(f"{order}2sHI", b"MM" if order == ">" else b"II", 42, 8) + struct.pack(f"{order}H", len(tags))
    path.write_bytes(head + entries + b"\0" * 4 + extra + samples.tobytes())


def write_pillow(path: Path, values: NDArray[Any]) -> None:
    Image.fromarray(values).save(path)


def write_packed(path: Path, values: NDArray[Any]) -> None:
    Image.fromarray(values).save(path, compression="tiff_lzw")


def numbers(dtype: str, low: float, high: float, channels: int = 1) -> NDArray[Any]:
    shape = (8, 8) if channels == 1 else (8, 8, channels)
    values = (
        RNG.uniform(low, high, shape) if np.dtype(dtype).kind == "f" else RNG.integers(int(low), int(high) + 1, shape)
    )
    return values.astype(dtype)


KINDS: dict[str, tuple[str, Write, NDArray[Any]]] = {
    "12 of 16 bits, PNG": ("png", write_png, numbers("u2", 0, 4095)),
    "8 of 16 bits, PNG": ("png", write_png, numbers("u2", 0, 255)),
    "far from zero": ("png", write_png, numbers("u2", 30000, 31000)),
    "colour, 16 bits, PNG": ("png", write_png, numbers("u2", 0, 200, 3)),
    "colour, 16 bits, TIFF": ("tif", write_tiff, numbers("<u2", 0, 200, 3)),
    "colour, 16 bits, big-endian TIFF": ("tif", write_tiff, numbers(">u2", 0, 200, 3)),
    "16 bits, TIFF": ("tif", write_tiff, numbers("<u2", 0, 300)),
    "16 bits, packed TIFF": ("tif", write_packed, numbers("u2", 0, 300)),
    "signed 16 bits": ("tif", write_tiff, numbers("<i2", -1000, 3000)),
    "signed 32 bits": ("tif", write_tiff, numbers("<i4", -1000, 1000)),
    "unsigned 32 bits": ("tif", write_tiff, numbers("<u4", 2**31 - 5, 2**32 - 1)),
    "32 bits, Pillow": ("tif", write_pillow, numbers("i4", 0, 50)),
    "floats to 1": ("tif", write_pillow, numbers("f4", 0, 1)),
    "negative floats": ("tif", write_tiff, numbers("<f4", -3, -1)),
    "floats to a million": ("tif", write_tiff, numbers(">f4", 0, 1e6)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_come_out_over_the_whole_range(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ending, write, values = KINDS[kind]
    path = tmp_path / f"picture.{ending}"
    write(path, values)
    found = find_value_range([path])
    assert found == pytest.approx((values.min(), values.max()), rel=1e-6)
    (image,) = read_pictures([path], 8, values.ndim == 2, found)
    share = (values.astype(float) - values.min()) / float(values.astype(float).max() - values.min())
    expected = share[None] if values.ndim == 2 else share.transpose(2, 0, 1)
    assert np.abs(image / 255 - expected).max() < 1 / 200
    assert image.min() == 0
    assert image.max() == 255
    assert capfd.readouterr().err == ""


def test_opacity_is_no_value(tmp_path: Path) -> None:
    """Transparent pixels become white, whatever their colour; opacity is always 0 to 65535."""
    for channels in (1, 3):
        values = np.full((8, 8, channels + 1), 50, np.uint16)
        values[..., -1] = 65535
        values[0, 0] = 0
        write_png(tmp_path / "picture.png", values)
        assert find_value_range([tmp_path / "picture.png"]) == (0, 50)
        found = read_picture(tmp_path / "picture.png", 8, grey=True, value_range=(0, 99))
        assert found[0, 0, 0] == 255
        assert set(found[0, 1:].ravel().tolist()) == {129}


def test_upright_in_both_bytes(tmp_path: Path) -> None:
    values = np.zeros((8, 8, 3), np.uint16)
    values[:4] = 255
    path = tmp_path / "picture.tif"
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    write_png(tmp_path / "picture.png", values)
    content = (tmp_path / "picture.png").read_bytes()
    tag = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(tag) - 4) + tag + struct.pack(">I", zlib.crc32(tag))
    (tmp_path / "picture.png").write_bytes(content[:33] + chunk + content[33:])
    path = tmp_path / "picture.png"
    found = read_picture(path, 8, grey=True, value_range=(0, 255))
    assert found[0, :4].max() == 0
    assert found[0, 4:].min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_eight_bits_are_what_they_were(mode: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{'tif' if mode in ('CMYK', 'LA') else 'png'}"
    Image.fromarray(numbers("u1", 0, 255, 3)).convert(mode).save(path)
    assert find_value_range([path]) is None
    with Image.open(path) as file:
        white = Image.new("RGBA", file.size, "white")
        expected = np.asarray(Image.alpha_composite(white, file.convert("RGBA")).convert("RGB"))
    for known in (None, (0, 4095)):
        assert np.array_equal(read_picture(path, 8, grey=False, value_range=known), expected.transpose(2, 0, 1))


def test_whole_numbers_of_16_bits_become_their_high_bytes() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(eight_bits(every, None)[0], every >> 8)
    assert np.array_equal(eight_bits(every[:1], (0.0, 255.0))[0], every[:1])
    assert np.array_equal(eight_bits(every[:1].astype(np.float32), None)[0], every[:1])


# ---- a set of such pictures


def write_set(root: Path, *, high: int = 200, n: int = 12, first: int = 0, low: int = 0) -> None:
    """Two classes, of the upper and the lower half of the values, in files of 16 bits."""
    for name, start, end in (("dark", low, (low + high) // 2), ("light", (low + high) // 2, high)):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + n):
            write_png(root / name / f"{index}.png", RNG.integers(start, end + 1, (8, 8 + index % 3)))


def trainer(**options: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **quiet, **options)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_range_is_found_over_the_training_pictures_and_kept(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_set(here / "root")
    data = ImageFolder("root", augment=False, **SMALL)
    fits = trainer(max_epochs=8)
    torch.manual_seed(0)  # it must learn two classes of the pictures in eight epochs, whatever ran before
    model = Classifier(lr=0.05, **NET)
    fits.fit(model, data)
    fits.save_checkpoint("trained.ckpt")
    train = [path for path in sorted((here / "root").rglob("*.png")) if "told" not in path.name]
    low, high = find_value_range(train) or (0, 0)
    assert data.value_range is not None
    assert low <= data.value_range[0] <= 5
    assert high - 5 <= data.value_range[1] <= high
    assert DataRecord.of(read_checkpoint("trained.ckpt")).value_range == data.value_range
    assert float(trainer().test(model, data, verbose=False)[0]["test_acc"]) == 1.0

    for path in (here / "root").rglob("*.png"):  # now the pictures have another range
        write_png(path, RNG.integers(0, 2001, (8, 9)))
    capfd.readouterr()
    other = ImageFolder("root", **SMALL)
    trainer().test(Classifier(**NET), other, ckpt_path="trained.ckpt", verbose=False, weights_only=True)
    assert other.value_range == data.value_range
    assert "which are clipped: from " in capfd.readouterr().err


def test_a_found_range_is_that_of_the_pictures_trained_with(here: Path) -> None:
    for name, high in (("train", 500), ("val", 900), ("test", 1000)):
        write_set(here / "root" / name, high=high, n=3, low=10)
    write_png(here / "root/train/dark/0.png", np.arange(3, 67).reshape(8, 8))
    write_png(here / "root/train/light/0.png", np.arange(600, 664).reshape(8, 8))
    data = ImageFolder("root", **SMALL)
    data.setup()
    assert data.value_range == (3, 663)


def test_a_given_range_wins_and_a_training_goes_on_with_no_other(here: Path) -> None:
    write_set(here / "root")
    fits = trainer(max_epochs=1)
    fits.fit(Classifier(**NET), ImageFolder("root", value_range=(0, 255), **SMALL))
    fits.save_checkpoint("trained.ckpt")
    assert read_checkpoint("trained.ckpt")["data"]["value_range"] == (0.0, 255.0)
    given = ImageFolder("root", value_range=(0, 4095), **SMALL)
    trainer().test(Classifier(**NET), given, ckpt_path="trained.ckpt", verbose=False, weights_only=True)
    assert given.value_range == (0, 4095)
    with pytest.raises(UserError, match=r"data.value_range: expected that of the checkpoint, 0 to 255, got 0 to 4095"):
        trainer(max_epochs=2).fit(Classifier(**NET), given, ckpt_path="trained.ckpt", weights_only=True)
    kept = ImageFolder("root", **SMALL)
    trainer(max_epochs=2).fit(Classifier(**NET), kept, ckpt_path="trained.ckpt", weights_only=True)
    assert kept.value_range == (0, 255)


def test_a_checkpoint_of_version_0_1_sees_what_it_saw(here: Path) -> None:
    write_set(here / "root", high=60000)
    fits = trainer(max_epochs=1)
    data = ImageFolder("root", **SMALL)
    fits.fit(Classifier(**NET), data)
    fits.save_checkpoint("trained.ckpt")
    content = torch.load("trained.ckpt", weights_only=True)
    content["data"] = {key: content["data"][key] for key in ("class_names", "mean", "std")}
    torch.save(content, "old.ckpt")
    trainer().test(Classifier(**NET), data, ckpt_path="old.ckpt", verbose=False, weights_only=True)
    assert data.value_range is None
    with Image.open(here / "root/dark/0.png") as file:  # in train: found by its pixels
        expected = torch.from_numpy(np.asarray(file).astype(np.int64) >> 8)
    images = torch.cat([torch.as_tensor(data._splits[name][0]) for name in ("train", "val", "test")])
    assert (images.long() == expected).flatten(1).all(1).any()


def test_clipped_values_are_reported_once_with_numbers(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for index in range(4):
        write_tiff(here / f"{index}.tif", np.array([[-5, 10, 20], [30, 40, 90000]], "<i4") + index)
    files = sorted(here.glob("*.tif"))
    read_pictures(files, 8, True, (0, 4095))
    assert capfd.readouterr().err.splitlines() == [
        "cnn-lightning: 4 of 4 pictures have values outside the range 0 to 4095, which are clipped: from -5 to 90003, "
        f"the first in {files[0]}"
    ]
    write_tiff(here / "0.tif", np.array([[np.nan, 0.5], [np.inf, 1.0]], "<f4"))
    assert find_value_range([here / "0.tif"]) == (0.5, 1)
    assert read_pictures([here / "0.tif"], 2, True, (0.5, 1))[0, 0].tolist() == [[0, 0], [0, 255]]
    assert "outside the range 0.5 to 1, which are clipped: from 0.5 to 1" in capfd.readouterr().err


def test_many_values_that_become_few_are_reported(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One hot pixel makes all other pictures black: nothing shows that it is wrong, but the effect is reported."""
    write_set(here / "root")
    train = here / "root/train"
    train.mkdir()
    for name in ("dark", "light"):
        (here / "root" / name).rename(train / name)
    hot = np.full((8, 8), 7, np.uint16)
    hot[3, 3] = 65535
    write_png(train / "dark/hot.png", hot)
    for name in ("val", "test"):
        write_set(here / "root" / name, n=2)
    capfd.readouterr()
    ImageFolder("root", **SMALL).setup()
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 3  # once for each split
    assert (
        "24 of 25 pictures have many values that come out as one or two in the range 0 to 65535, the first" in told[0]
    )
    assert told[0].endswith("data.value_range gives another range")


def test_worker_processes_report_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "MEMORY", 100)
    write_set(here / "root")
    data = ImageFolder("root", value_range=(0, 30), **SMALL)
    data.setup()
    held = data.train_dataloader()
    assert held.num_workers == 2
    for _ in range(2):
        list(held)
    assert capfd.readouterr().err.count("which are clipped") == 1


def test_pictures_that_do_not_fit_have_the_range_of_all(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MEMORY", 100)
    monkeypatch.setattr("cnn_lightning.data.image_folder.SAMPLE", 3)
    write_set(here / "root")
    read, held = (ImageFolder(str(here / "root"), **SMALL) for _ in range(2))
    read.setup()
    monkeypatch.undo()
    held.setup()
    assert read.value_range == held.value_range is not None


def test_other_sets_see_pictures_to_predict_in_all_16_bits(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "new").mkdir()
    write_png(here / "new/0.png", numbers("u2", 0, 65535))
    write_png(here / "new/1.png", numbers("u2", 0, 200))
    data = Digits(predict_dir=str(here / "new"))
    data.setup()
    data.predict_dataloader()
    assert "1 of 2 pictures have many values that come out as one or two" in capfd.readouterr().err


def test_hidden_values_are_refused(tmp_path: Path) -> None:
    """Pillow gives only the high byte of these; they are refused where it is nothing."""
    values = numbers("<u2", 0, 200, 4)
    write_tiff(tmp_path / "picture.tif", values)
    content = bytearray((tmp_path / "picture.tif").read_bytes())
    place = content.index(struct.pack("<HHIHH", 262, 3, 1, 2, 0))
    content[place + 8] = 5  # CMYK
    (tmp_path / "picture.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"picture.tif: expected 16 bits a value in grey or RGB, or 8, got 16 in CMYK"):
        read_picture(tmp_path / "picture.tif", 8, grey=False)


@pytest.mark.parametrize("given", [(5, 5.5, 6), (2, 1), (0, float("nan")), (0, float("inf")), (1,)])
def test_a_range_that_is_none_is_refused(given: Any, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match=r"data.value_range: expected two numbers, the lower one first, got \("):
        ImageFolder(str(tmp_path), value_range=given)


def test_a_record_with_a_range_that_is_none_is_refused() -> None:
    known = {"class_names": ("a",), "mean": (0.5,), "std": (0.5,), "value_range": "wide"}
    with pytest.raises(UserError, match=r"ckpt_path: expected what this program keeps of the data"):
        DataRecord.of({"data": known})


def test_from_the_command_line(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_set(here / "root", high=4000)
    write_set(here / "new", high=9000, n=2)
    data = ["--data", "ImageFolder", "--data.root", "root", "--data.image_size", "8", "--data.grey", "true"]
    fit = [*data, "--model.layers", "torch", "--model.channels", "[2,2]", "--model.hidden", "4", "--pictures", "false"]
    run = "runs/imagefolder/version_0"
    quiet = ["--trainer.enable_progress_bar", "false"]
    given = ["--data.value_range", "[0, 4095]", "--data.fit", "squeeze"]
    assert main(["fit", *fit, *given, *quiet, "--trainer.max_epochs", "1", "--data.batch_size", "4"]) == 0
    best = ["--config", f"{run}/config.yaml", "--ckpt_path", f"{run}/checkpoints/best.ckpt"]
    assert read_checkpoint(best[3])["data"]["value_range"] == (0.0, 4095.0)
    assert main(["test", *best, *quiet]) == 0
    assert capfd.readouterr().err == ""
    assert main(["predict", *best, *quiet, "--data.predict_dir", "new"]) == 0
    assert "outside the range 0 to 4095, which are clipped" in capfd.readouterr().err
    picture = ["--image", str(here / "new/light/0.png")]
    assert main(["explain", "--ckpt_path", best[3], *picture]) == 0
    assert "1 of 1 pictures have values outside the range 0 to 4095" in capfd.readouterr().err
    assert main(["fit", *best, *quiet, "--data.value_range", "[0, 255]", "--trainer.max_epochs", "2"]) == 2
    assert "expected that of the checkpoint, 0 to 4095, got 0 to 255" in capfd.readouterr().err
