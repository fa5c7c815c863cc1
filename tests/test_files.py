"""Files are written completely or not at all."""

import os
import stat
import threading
from pathlib import Path

import pytest

from cnn_lightning.errors import one_line
from cnn_lightning.files import whole, whole_folder


def test_a_file_takes_its_place_only_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == ".csv"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def fill_the_disk() -> None:
        with whole(path) as temporary:
            temporary.write_text("half of")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError), whole(tmp_path / "page.html") as temporary:
        temporary.write_text("page")
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_link_and_its_permissions_stay(tmp_path: Path) -> None:
    target = tmp_path / "target.txt"
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "link.txt").symlink_to(target)
    with whole(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with whole(pipe) as place:
        place.write_text("through")
    reader.join(10)
    assert read == ["through"]
    assert pipe.is_fifo()


def test_a_folder_takes_its_place_only_when_it_is_complete(tmp_path: Path) -> None:
    root = tmp_path / "data"

    def download(complete: bool) -> None:
        with whole_folder(root, "set/raw") as temporary:
            (temporary / "set/raw").mkdir(parents=True)
            (temporary / "set/raw/images").write_text("all")
            assert not (root / "set/raw").exists()
            if not complete:
                raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        download(complete=False)
    assert os.listdir(tmp_path) == []
    download(complete=True)
    assert (root / "set/raw/images").read_text() == "all"
    assert os.listdir(root / "set") == ["raw"]


def test_an_error_on_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError("a\n  b"), 2) == "a "
    assert one_line(ValueError()) == "ValueError"
    assert one_line(OSError(28, "No space left on device", "a.png")) == "No space left on device"
    assert one_line("") == ""
