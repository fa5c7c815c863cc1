"""The nodes of torchvision's Swin Transformer: attention inside windows of a feature map (N, H, W, C)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from cnn_lightning.tools.export.numpy.lower import Lowering

NOT_SEEN = -100.0
"""What torchvision adds to the score of two pixels that are no neighbours before the shift."""


def position_bias(nodes: Lowering, call: fx.Node) -> int:
    """A number for each head and each pair of pixels in a window, (1, heads, P, P), from the rows of a table."""
    table, index, _ = call.args
    assert isinstance(index, fx.Node)
    _, heads, pixels, _ = nodes.recording.shape(call)
    rows = nodes.add("gather", [nodes.place(table)], {}, {"index": str(index.target)})
    pairs = nodes.add("reshape", [rows], {"shape": [pixels, pixels, heads]})
    order = nodes.add("permute", [pairs], {"order": [2, 0, 1]})
    return nodes.add("reshape", [order], {"shape": [1, heads, pixels, pixels]}, of=call)


def merged_patches(nodes: Lowering, call: fx.Node) -> int:
    """Each square of 2 x 2 pixels as one pixel of 4 C numbers, after zeros at odd ends."""
    (source,) = call.args
    assert isinstance(source, fx.Node)
    _, height, width, _ = nodes.recording.shape(source)
    widths = [[0, 0], [0, height % 2], [0, width % 2], [0, 0]]
    x = nodes.add("pad", [nodes.place(source)], {"widths": widths})
    whole = [None, None, None]
    parts = [
        nodes.add("part", [x], {"at": [whole, [row, None, 2], [column, None, 2]]})
        for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))
    ]
    return nodes.add("concatenate", parts, {"axis": -1}, of=call)


def attention(nodes: Lowering, call: fx.Node) -> int:
    """Attention in each window of pixels, of the map as it is or rolled by half a window.

    Raises:
        UserError: Attention by cosines (Swin V2), which has no formula.
    """
    names = ("input", "qkv_weight", "proj_weight", "relative_position_bias", "window_size", "num_heads", "shift_size")
    given: dict[str, Any] = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    if given.get("logit_scale") is not None:
        raise nodes.refused("shifted_window_attention with logit_scale")
    source, heads = given["input"], given["num_heads"]
    _, height, width, channels = nodes.recording.shape(source)
    (wh, ww), pixels = given["window_size"], given["window_size"][0] * given["window_size"][1]
    high, wide = height + -height % wh, width + -width % ww
    down, right = windows_of = high // wh, wide // ww
    shifts = [0 if w >= n else s for w, n, s in zip((wh, ww), (high, wide), given["shift_size"], strict=True)]
    frozen = not given.get("training", True)

    x = nodes.add("pad", [nodes.place(source)], {"widths": [[0, 0], [0, high - height], [0, wide - width], [0, 0]]})
    if any(shifts):
        x = nodes.add("roll", [x], {"shifts": [-shift for shift in shifts], "axes": [1, 2]})
    x = nodes.add("reshape", [x], {"shape": [-1, down, wh, right, ww, channels]})
    x = nodes.add("permute", [x], {"order": [0, 1, 3, 2, 4, 5]})
    x = nodes.add("reshape", [x], {"shape": [-1, pixels, channels]})

    x = nodes.add("linear", [x], {}, _names(given, "qkv_weight", "qkv_bias"))
    x = nodes.add("reshape", [x], {"shape": [-1, pixels, 3, heads, channels // heads]})
    x = nodes.add("permute", [x], {"order": [2, 0, 3, 1, 4]})
    q, k, v = (nodes.add("part", [x], {"at": [index]}) for index in range(3))
    q = nodes.add("multiply", [q], {"number": (channels // heads) ** -0.5})
    k = nodes.add("permute", [k], {"order": [0, 1, 3, 2]})
    scores = nodes.add("product", [q, k])
    scores = nodes.add("add", [scores, nodes.place(given["relative_position_bias"])])
    if any(shifts):
        mask = nodes.constant("mask", _mask((high, wide), (wh, ww), shifts))
        added = nodes.add("parameter", [], {}, {"weight": mask})
        scores = nodes.add("reshape", [scores], {"shape": [-1, down * right, heads, pixels, pixels]})
        scores = nodes.add("add", [scores, added])
        scores = nodes.add("reshape", [scores], {"shape": [-1, heads, pixels, pixels]})
    looks = nodes.add("softmax", [scores], {"dim": -1})
    looks = _dropped(nodes, looks, given.get("attention_dropout", 0.0), frozen)
    x = nodes.add("product", [looks, v])
    x = nodes.add("permute", [x], {"order": [0, 2, 1, 3]})
    x = nodes.add("reshape", [x], {"shape": [-1, pixels, channels]})
    x = nodes.add("linear", [x], {}, _names(given, "proj_weight", "proj_bias"))
    x = _dropped(nodes, x, given.get("dropout", 0.0), frozen)

    x = nodes.add("reshape", [x], {"shape": [-1, *windows_of, wh, ww, channels]})
    x = nodes.add("permute", [x], {"order": [0, 1, 3, 2, 4, 5]})
    x = nodes.add("reshape", [x], {"shape": [-1, high, wide, channels]})
    if any(shifts):
        x = nodes.add("roll", [x], {"shifts": shifts, "axes": [1, 2]})
    return nodes.add("part", [x], {"at": [[None, None, None], [None, height, None], [None, width, None]]}, of=call)


def _names(given: dict[str, Any], weight: str, bias: str) -> dict[str, str]:
    roles = {"weight": given[weight], "bias": given.get(bias)}
    return {role: str(call.target) for role, call in roles.items() if call is not None}


def _dropped(nodes: Lowering, x: int, p: float, frozen: bool) -> int:
    return nodes.add("dropout", [x], {"p": p, "along": "all"}, frozen=frozen) if p else x


def _mask(size: tuple[int, int], window: tuple[int, int], shifts: list[int]) -> NDArray[np.float32]:
    """(windows, 1, P, P): 0 for pixels that were in one region before the roll, `NOT_SEEN` for others."""
    regions = np.zeros(size, np.float32)
    count = 0
    rows, columns = (
        (slice(0, -w), slice(-w, -shift), slice(-shift, None)) for w, shift in zip(window, shifts, strict=True)
    )
    for row in rows:
        for column in columns:
            regions[row, column] = count
            count += 1
    (wh, ww), (high, wide) = window, size
    each = regions.reshape(high // wh, wh, wide // ww, ww).swapaxes(1, 2).reshape(-1, wh * ww)
    differ = each[:, None, :] != each[:, :, None]
    return np.where(differ, np.float32(NOT_SEEN), np.float32(0))[:, None]
