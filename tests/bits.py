"""Print one digest for each row of the table of cases: ``python -m tests.bits > here.txt``.

The results of two checkouts are equal to the bit where ``diff`` finds no difference between their lists. A row is the
name of the case, the index of its sample, the dtype, and the digest of outputs, gradients and buffers.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

from tests.test_layers import CASES, Run, build, run


def digest(results: Run) -> str:
    """Of dtypes, shapes and values; every NaN counts as the same one, since its bits carry no result."""
    found = hashlib.sha256()
    for kind, tensors in zip(("output", "gradient", "buffer"), results, strict=True):
        for tensor in tensors:
            found.update(f"{kind} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            found.update(_bytes(tensor.detach()))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    array = tensor.cpu().contiguous().numpy()
    if array.dtype.kind != "f":
        return array.tobytes()
    return np.where(np.isnan(array), array.dtype.type(np.nan), array).tobytes()


def main() -> None:
    """Every sample of every case, in both dtypes."""
    for case in CASES:
        for index, sample in enumerate(case.samples):
            for dtype in (torch.float64, torch.float32):
                ours, _ = build(case, sample, dtype)
                print(case.name, index, str(dtype).removeprefix("torch."), digest(run(ours, sample.inputs(dtype))))


if __name__ == "__main__":
    main()
