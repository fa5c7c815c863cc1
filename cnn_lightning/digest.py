"""Archives (.ckpt, .pt, .npz) with a digest of all their bytes, so that damage is seen before anything is read.

The digest stands in the comment of the zip format, at the very end of the file, so that every other program reads the
file as before. A file without one (of version 0.1, or of another program) is held to the CRC-32 of its records, which
neither torch nor a partial read of NumPy looks at.
"""

import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import IO

from cnn_lightning import filetypes
from cnn_lightning.errors import one_line

MARK = b"cnn-lightning sha256 "
_DIGITS = 2 * hashlib.sha256().digest_size
_COMMENT = len(MARK) + _DIGITS
_END = 22
"""Bytes of the record that ends a zip file without a comment; its last two are the comment's length."""
_PIECE = 1 << 20
_TEXT_MARK = b"# sha256 of the lines above: "


class Damaged(ValueError):
    """Bytes of a file are not those that were written; the text says how one can tell."""


class Foreign(ValueError):
    """A file is no zip file; the text says what it is."""


def seal(file: IO[bytes]) -> None:
    """Add the digest to a zip file that is open for reading and writing and has no comment yet."""
    file.seek(-2, io.SEEK_END)
    file.write(_COMMENT.to_bytes(2, "little"))
    content = file.tell()
    file.write(MARK)
    digits = _digest(file, content + len(MARK))
    file.seek(0, io.SEEK_END)
    file.write(digits)


def check(file: IO[bytes]) -> list[str]:
    """The names of a zip file's members, once all its bytes are held to its digest, or to their CRC-32 without one.

    Raises:
        Foreign: It is no zip file.
        Damaged: Some bit is another one, or the file is cut short.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _COMMENT))
    comment = file.read()
    if comment.startswith(MARK):
        if _digest(file, size - _DIGITS) != comment[len(MARK) :]:
            raise Damaged("its SHA-256 is not the one that was written with it")
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    else:
        file.seek(0)
        head = file.read(filetypes.HEAD)
        if not head.startswith(filetypes.ZIP):
            raise Foreign(filetypes.of_bytes(head, size))
        names = _check_records(file, size)
    file.seek(0)
    return names


def seal_text(path: Path) -> None:
    """Add a digest to a YAML file, as a comment in its last line."""
    content = path.read_bytes()
    path.write_bytes(content + _TEXT_MARK + hashlib.sha256(content).hexdigest().encode() + b"\n")


def is_changed_text(content: bytes) -> bool:
    """Whether a YAML file has a digest and was changed since, by its owner or by damage."""
    text, mark, digits = content.rpartition(_TEXT_MARK)
    return bool(mark) and digits.strip() != hashlib.sha256(text).hexdigest().encode()


def _digest(file: IO[bytes], size: int) -> bytes:
    """Of the first bytes, in hexadecimal."""
    found = hashlib.sha256()
    file.seek(0)
    while size:
        piece = file.read(min(size, _PIECE))
        if not piece:
            break
        found.update(piece)
        size -= len(piece)
    return found.hexdigest().encode()


def _check_records(file: IO[bytes], size: int) -> list[str]:
    file.seek(max(0, size - _END))
    end = file.read()
    if not (end.startswith(b"PK\5\6") and end.endswith(b"\0\0") and len(end) == _END):
        raise Damaged("its end is missing or changed")
    try:
        with zipfile.ZipFile(file) as archive:
            if int.from_bytes(end[10:12], "little") not in (len(archive.infolist()), 0xFFFF):
                raise Damaged("its table of contents is changed")
            first, names = archive.testzip(), archive.namelist()
    # What zipfile says to a changed header depends on which bytes of it are changed.
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(one_line(error, 80)) from None
    if first is not None:
        raise Damaged(f"the CRC-32 of {first} is not the one that was written with it")
    return names
