"""The type of a file that is no archive of weights, by its first bytes."""

import json
from collections.abc import Sequence

ZIP = b"PK\3\4"
HEAD = 512
"""The number of first bytes that `of_bytes` needs."""
_STARTS = (
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer, not the file itself (git lfs pull brings it)"),
    (b"\x89HDF\r\n", "an HDF5 file, such as Keras writes"),
    (b"\x1f\x8b", "a gzip-compressed file"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"%PDF", "a PDF document"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x80", "a pickle, torch's format before 1.6 or another program's; it was not read"),
)
_TEXT = frozenset(range(32, 256)) | {*b"\t\n\f\r"}


def of_bytes(head: bytes, size: int) -> str:
    """The type of a file of ``size`` bytes that begins with ``head``, `HEAD` bytes or the whole file."""
    if not size:
        return "an empty file"
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if _is_safetensors(head, size):
        return "a safetensors file, which holds weights alone"
    if head[257:262] == b"ustar":
        return "a tar archive"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a saved web page, not the file that it shows"
    if not head.strip(b"\0"):
        return "a file that begins with zeros"
    if not set(head) - _TEXT:
        return "a text file"
    return "of a kind that is unknown here"


def of_archive(names: Sequence[str]) -> str:
    """The type of a zip file with members of these names."""
    if names and all(name.endswith(".npy") for name in names):
        return "a file of NumPy arrays (.npz)"
    if any(name.endswith("/data.pkl") for name in names):
        return "a file written by torch.save"
    if any(name.endswith("archive_format") or "/models/" in name for name in names):
        return "a program written by torch.export (.pt2)"
    return "a zip archive of something else"


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether the file begins with eight bytes of the length of a header, then a header in JSON."""
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= size - 8 or head[8:9] != b"{":
        return False
    if len(head) < 8 + length:
        return b'"' in head[9:16]
    try:
        return isinstance(json.loads(head[8 : 8 + length]), dict)
    except ValueError:
        return False
