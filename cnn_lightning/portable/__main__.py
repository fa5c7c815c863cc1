"""The start of an exported network: checks Python, NumPy and the bytes of the archive, then runs the command.

In the archive this file is at the top. Its syntax is that of old Pythons, so that they can say what is missing.
"""

import hashlib
import os
import sys

LEAST_PYTHON, LEAST_NUMPY = (3, 11), (2, 1)
MARK = b"cnn-lightning sha256 "
DIGITS = 64


def problem(root: str) -> str:
    """Why the network at ``root``, an archive or an unpacked folder, can't run here; empty if it can."""
    if sys.version_info < LEAST_PYTHON:
        return "Python: expected {}.{} or newer, got {}.{}".format(*LEAST_PYTHON, *sys.version_info)
    if os.path.isfile(root) and not is_whole(root):
        return root + ": it is damaged: its SHA-256 is not the one that was written with it"
    # NumPy's BLAS takes one thread: the products of most layers are too small for a second one to gain.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        import numpy
    except ImportError:
        return "NumPy: expected {}.{} or newer, found none; pip install numpy".format(*LEAST_NUMPY)
    version = tuple(int(part) for part in numpy.__version__.split(".")[:2])
    if version < LEAST_NUMPY:
        return "NumPy: expected {}.{} or newer, got {}".format(*LEAST_NUMPY, numpy.__version__)
    return ""


def is_whole(path: str) -> bool:
    """Whether an archive ends with the digest of all bytes before it."""
    with open(path, "rb") as file:
        left = file.seek(0, os.SEEK_END) - DIGITS
        file.seek(max(0, left - len(MARK)))
        mark, digits = file.read(len(MARK)), file.read()
        file.seek(0)
        found = hashlib.sha256()
        while left > 0:
            piece = file.read(min(left, 1 << 20))
            found.update(piece)
            left -= len(piece)
    return mark == MARK and digits == found.hexdigest().encode()


if __name__ == "__main__":
    place = os.path.dirname(os.path.abspath(__file__))
    found = problem(place)
    if found:
        print("error: " + found, file=sys.stderr)
        sys.exit(2)
    from cnn_lightning.portable.command import run

    run(place)
