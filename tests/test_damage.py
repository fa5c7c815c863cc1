"""Damaged files (a flipped bit, a lost block, a missing end) are refused by name, or read exactly as written."""

import io
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnn_lightning import digest
from cnn_lightning.callbacks.tables import read_rows
from cnn_lightning.checkpoints import FOR_FIT, Unreadable, WholeFiles, load, read_checkpoint
from cnn_lightning.cli import main
from cnn_lightning.errors import UserError
from cnn_lightning.plain import weights
from tests.test_resume import differences

FIT = ["fit", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--data.batch_size", "256"]
FIT += ["--model.hidden", "8", "--model.channels", "[2, 3]"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(FIT) == 0
    return folder / "runs/digits/version_0"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def damages(content: bytes, seed: int, bits: int) -> Iterator[tuple[str, bytes]]:
    """Single flipped bits, also in the first and the last bytes; zeroed and lost blocks; every kind of cut."""
    chance = random.Random(seed)
    size = len(content)
    places = [chance.randrange(8 * size) for _ in range(bits)]
    places += [8 * byte + chance.randrange(8) for byte in [*range(0, 40, 3), *range(size - 150, size, 3)]]
    for place in places:
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield f"bit {place % 8} of byte {place // 8} of {size}", bytes(changed)
    blocks = range(0, size, 512)
    for start in chance.sample(blocks, min(40, len(blocks))):
        block = content[start : start + 512]
        if any(block):
            yield f"zeros from {start}", content[:start] + bytes(len(block)) + content[start + 512 :]
        yield f"without the block at {start}", content[:start] + content[start + 512 :]
    for end in [0, 1, size - 1, size - 64, size - 85, size - 107, *(chance.randrange(size) for _ in range(20))]:
        yield f"cut to {end} of {size}", content[:end]
    yield "one more byte", content + b"\0"


def unseal(content: bytes) -> bytes:
    """The file as version 0.1 wrote it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        comment = len(archive.comment)
    return content[: -comment - 2] + b"\0\0"


def survivors(content: bytes, read: Callable[[Path], Any], seed: int = 0, bits: int = 200) -> list[str]:
    """The damages that were not refused; what is read then must be what was written."""
    path = Path("damaged")
    path.write_bytes(content)
    expected = read(path)
    found = []
    for name, damaged in damages(content, seed, bits):
        path.write_bytes(damaged)
        refused, again = _tried(read, path)
        if not refused:
            assert differences(expected, again) == [], name
            found.append(name)
        else:
            assert "damaged" in refused, name
            assert len(refused.splitlines()) == 1
    return found


def _tried(read: Callable[[Path], Any], path: Path) -> tuple[str, Any]:
    try:
        return "", read(path)
    except UserError as error:
        return str(error), None


def read_weights(path: Path) -> Any:
    shapes = {"a": (30, 7), "b": (5,)}
    return {name: torch.from_numpy(value) for name, value in weights.load(path, shapes).items()}


def read_snapshot(path: Path) -> Any:
    try:
        return load(path)
    except Unreadable as error:
        raise UserError(f"{path} {error}") from None


@pytest.fixture(scope="module")
def files(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, Callable[[Path], Any]]]:
    """What is written and read again, and how."""
    path = tmp_path_factory.mktemp("weights") / "w.npz"
    chance = np.random.default_rng(0)
    weights.save(path, {"a": chance.random((30, 7), np.float32), "b": chance.random(5)})
    return {
        "last.ckpt": ((made / "checkpoints/last.ckpt").read_bytes(), read_checkpoint),
        "best.ckpt": ((made / "checkpoints/best.ckpt").read_bytes(), read_checkpoint),
        "weights.npz": (path.read_bytes(), read_weights),
        "snapshot.pt": ((made / "snapshots/epoch_0001.pt").read_bytes(), read_snapshot),
    }


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt", "weights.npz", "snapshot.pt"])
def test_every_damage_is_refused(name: str, files: Any, here: Path) -> None:
    assert survivors(*files[name]) == []


@pytest.mark.parametrize("name", ["last.ckpt", "weights.npz", "snapshot.pt"])
def test_a_file_without_a_digest_is_refused_or_read_as_it_was_written(name: str, files: Any, here: Path) -> None:
    content, read = files[name]
    old = unseal(content)
    Path("old").write_bytes(old)
    Path("new").write_bytes(content)
    assert differences(read(Path("old")), read(Path("new"))) == []
    unseen = survivors(old, read)
    # Times, padding, and the copies of a record's header that nothing reads.
    assert all(text.startswith("bit") or text.startswith("zeros") for text in unseen)


def test_other_programs_read_the_files_as_before(files: Any, here: Path) -> None:
    for name, (content, read) in files.items():
        path = here / name
        path.write_bytes(content)
        if path.suffix == ".npz":
            with np.load(path) as archive:
                other: Any = {key: torch.from_numpy(archive[key]) for key in archive.files}
        else:
            other = torch.load(path, weights_only=True, mmap=True)
        assert differences(read(path), other) == []


# ---- what a command says


def test_the_newest_good_checkpoint_is_offered(made: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = here / "run/checkpoints"
    folder.mkdir(parents=True)
    content = bytearray((made / "checkpoints/last.ckpt").read_bytes())
    (folder / "best.ckpt").write_bytes(content)
    content[len(content) // 2] ^= 4
    (folder / "last.ckpt").write_bytes(content)
    for command in ("fit", "validate", "test", "predict", "export", "explain", "parity"):
        assert main([command, "--ckpt_path", str(folder / "last.ckpt")]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1
        assert "last.ckpt is damaged (its SHA-256 is not the one that was written with it); " in error[0]
        assert error[0].endswith("run/checkpoints/best.ckpt is whole")


def test_a_file_that_changes_after_it_was_looked_at_is_not_trained_on(
    made: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second reading of a checkpoint, Lightning's own, is as careful as the first."""
    path = here / "a.ckpt"
    content = bytearray((made / "checkpoints/last.ckpt").read_bytes())
    path.write_bytes(content)
    content[len(content) // 2] ^= 4
    first = WholeFiles.load_checkpoint

    def later(self: WholeFiles, *args: Any, **options: Any) -> Any:
        path.write_bytes(content)
        return first(self, *args, **options)

    monkeypatch.setattr(WholeFiles, "load_checkpoint", later)
    assert main([*FIT, "--ckpt_path", "a.ckpt"]) == 2
    assert "a.ckpt is damaged" in capsys.readouterr().err


def _html(path: Path) -> None:
    path.write_text("\n<!DOCTYPE html>\n<html><body>Sign in</body></html>\n")


def _pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def _safetensors(path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


def _script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), path)


def _arrays(path: Path) -> None:
    content = io.BytesIO()
    np.savez(content, a=1)
    path.write_bytes(content.getvalue())


def _legacy(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


STRANGERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a web page": (_html, "is no checkpoint but a saved web page, not the file that it shows"),
    "a git-lfs pointer": (_pointer, "is no checkpoint but a git-lfs pointer, not the file itself"),
    "safetensors": (_safetensors, "is no checkpoint but a safetensors file, which holds weights alone"),
    "nothing": (lambda path: path.touch(), "is no checkpoint but an empty file"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "is no checkpoint but a file that begins with zeros"),
    "text": (lambda path: path.write_text("lr: 0.1\n"), "is no checkpoint but a text file"),
    "noise": (lambda path: path.write_bytes(random.Random(1).randbytes(900)), "but of a kind that is unknown here"),
    "a folder": (lambda path: path.mkdir(), "is a folder, no checkpoint"),
    "a zip file": (_archive, "is no checkpoint but a zip archive of something else"),
    "npz": (_arrays, "is no checkpoint but a file of NumPy arrays (.npz)"),
    "torchscript": (_script, "is no checkpoint but a program written by torch.jit; it was not run"),
    "old torch": (_legacy, "is no checkpoint but a pickle, torch's format before 1.6"),
    "weights": (
        lambda path: torch.save(torch.nn.Linear(2, 2).state_dict(), path),
        "holds weights alone (a state_dict), no checkpoint of cnn-lightning",
    ),
    "another's": (
        lambda path: torch.save({"state_dict": {}, "hyper_parameters": {"lr": 1}}, path),
        "is no checkpoint of cnn-lightning",
    ),
    "a list": (lambda path: torch.save([1, 2], path), "is no checkpoint of cnn-lightning"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("command", ["fit", "export"])
@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_checkpoint_is_called_what_it_is(
    name: str, command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, words = STRANGERS[name]
    write(here / "a.ckpt")
    assert main([command, "--ckpt_path", "a.ckpt"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith(f"cnn-lightning: error: ckpt_path: a.ckpt {words}" if "unknown" not in words else "")
    assert words in error[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("name", [name for name in STRANGERS if name not in ("npz", "a folder")])
def test_what_is_no_file_of_weights_is_called_what_it_is(name: str, here: Path) -> None:
    STRANGERS[name][0](here / "w.npz")
    with pytest.raises(UserError, match=r"expected an \.npz file of weights, got \S*w\.npz: it is (an?|of) "):
        weights.load(here / "w.npz", {"a": (1,)})


def test_fit_wants_more_than_the_weights(made: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(made / "checkpoints/last.ckpt", weights_only=True)
    for key in ("optimizer_states", "lr_schedulers", "callbacks"):  # as ModelCheckpoint(save_weights_only=True) does
        del content[key]
    torch.save(content, "weights.ckpt")
    assert main([*FIT, "--ckpt_path", "weights.ckpt"]) == 2
    words = "weights.ckpt holds weights without the state of their training (callbacks, optimizer_states, lr_schedulers"
    assert words in capsys.readouterr().err
    assert main(["test", "--ckpt_path", "weights.ckpt", "--trainer.enable_progress_bar", "false"]) == 0


PLACES: list[tuple[Any, ...]] = [
    *((name,) for name in ("state_dict", "hyper_parameters", *FOR_FIT)),
    ("state_dict", "net.conv1.weight"),
    ("loops", "fit_loop"),
    ("loops", "fit_loop", "state_dict"),
    ("loops", "fit_loop", "epoch_loop.batch_progress"),
    ("callbacks", "Resumable"),
    ("callbacks", "Resumable", "random"),
    ("callbacks", "Resumable", "random", 0),
    ("callbacks", "Resumable", "random", 0, "torch"),
    ("callbacks", "Resumable", "random", 0, "numpy"),
    ("optimizer_states", 0),
    ("optimizer_states", 0, "param_groups"),
    ("lr_schedulers", 0),
    ("data", "mean"),
    ("data", "class_names"),
]


def _changed(place: tuple[Any, ...], change: str, source: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(source, weights_only=True)
    part: Any = content
    for key in place[:-1]:
        part = part[key]
    if change == "missing":
        del part[place[-1]]
    else:
        part[place[-1]] = "evil" if change == "a string" else [[]]
    return content


@pytest.mark.parametrize("change", ["missing", "a string", "a list"])
def test_what_is_missing_or_of_another_type_is_reported_in_one_line(
    change: str, made: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {}
    for place in PLACES:
        torch.save(_changed(place, change, made / "checkpoints/last.ckpt"), "changed.ckpt")
        code = main([*FIT, "--pictures", "false", "--ckpt_path", "changed.ckpt"])
        error = capsys.readouterr().err.strip().splitlines()
        assert code in (0, 2), place
        if code == 2:
            assert len(error) == 1, (place, error)
            assert error[0].startswith("cnn-lightning: error: ckpt_path: changed.ckpt"), (place, error)
            told[place] = error[0]
    assert told.keys() >= {place for place in PLACES if len(place) == 1}, set(PLACES) - told.keys()


# ---- texts: their owner may change them


def _flips(content: bytes, n: int) -> Iterator[bytes]:
    for place in random.Random(0).sample(range(8 * len(content)), n):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


@pytest.mark.parametrize("name", ["metrics.csv", "layers.csv"])
def test_a_damaged_table_is_reported_with_its_line(name: str, made: Path, here: Path) -> None:
    text = "epoch,layer,mean\n0,conv1,0.5\n1,conv1,-0.25\n" if name == "layers.csv" else None
    content = text.encode() if text else (made / name).read_bytes()
    words = ["layer"] if text else []
    path = here / name
    path.write_bytes(content)
    whole = read_rows(path, words, ["epoch"])
    told = 0
    for changed in _flips(content, 150):
        path.write_bytes(changed)
        refused, rows = _tried(lambda path: read_rows(path, words, ["epoch"]), path)
        told += bool(refused)
        assert refused.startswith(f"{path}: ") or not refused
        assert refused or len(rows) <= len(whole)
    assert told > 60


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0,x,1\n", "metrics.csv: line 2 is damaged (expected a number for loss, got 'x'): mend it, or move the file"),
        ("0,1\n", "metrics.csv: line 2 is damaged (expected 3 values, got 2)"),
        ("inf,1,1\n", "metrics.csv: line 2 is damaged (expected a number for epoch, got 'inf')"),
        ('0,"1,1\n', "metrics.csv: line 2 is damaged ("),
        ("0,1,\xff\n", "metrics.csv: expected a table, but can't read it: it is no text in UTF-8"),
    ],
)
def test_each_kind_of_damage_to_a_table(line: str, words: str, here: Path) -> None:
    Path("metrics.csv").write_bytes(b"epoch,loss,step\n" + line.encode("latin1"))
    with pytest.raises(UserError) as error:
        read_rows(Path("metrics.csv"))
    assert str(error.value).startswith(words)


def test_changed_metrics_are_reported_when_the_run_is_resumed(
    made: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made.parent.parent, "runs")
    path = Path("runs/digits/version_0/metrics.csv")
    content = path.read_text()
    flags = [*FIT, "--pictures", "false", "--ckpt_path", "last"]
    assert main(flags) == 0
    assert "metrics.csv" not in capsys.readouterr().err
    line = content.splitlines()[1]
    digit = next(index for index, letter in enumerate(line) if letter in "12345678")
    path.write_text(content.replace(line, line[:digit] + "9" + line[digit + 1 :]))
    assert main(flags) == 0
    words = "metrics.csv holds other rows than when the checkpoint was written; they are kept"
    assert words in capsys.readouterr().err
    path.write_text(content.replace("step", "stfp"))
    assert main(flags) == 2
    assert "metrics.csv: line 1 is damaged (expected a column step)" in capsys.readouterr().err


def test_a_changed_config_is_reported_where_it_is_read(
    made: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, "run")
    path = Path("run/config.yaml")
    content = path.read_bytes()
    assert not digest.is_changed_text(content)
    mark = content.rindex(b"# sha256")
    assert all(digest.is_changed_text(changed + content[mark:]) for changed in _flips(content[:mark], 200))
    explain = ["explain", "--ckpt_path", "run/checkpoints/last.ckpt"]
    assert main(explain) == 0
    assert capsys.readouterr().err == ""
    path.write_bytes(content.replace(b"  init_args:\n    batch_size: 256", b"  init_args:\n    batch_size: 252"))
    assert main(explain) == 0
    assert "config.yaml was changed since it was written; the picture may be another one" in capsys.readouterr().err
    assert main(["test", "--config", "run/config.yaml", *explain[1:], "--trainer.enable_progress_bar", "false"]) == 0


def test_a_damaged_snapshot_or_table_is_reported_by_explain(
    made: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, "run")
    path = Path("run/snapshots/epoch_0001.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    Path("run/metrics.csv").write_text("epoch,step\n0\n")
    assert main(["explain", "--ckpt_path", "run/checkpoints/last.ckpt"]) == 0
    first, second = capsys.readouterr().err.strip().splitlines()
    assert first.startswith("cnn-lightning: run/snapshots/epoch_0001.pt is damaged (")
    assert first.endswith("; passed over")
    assert second.startswith("cnn-lightning: run/metrics.csv: line 2 is damaged (expected 2 values, got 1)")
