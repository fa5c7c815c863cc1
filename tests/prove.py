"""Prove that the fast functions equal their formulas, and write down of which files: ``python -m tests.prove``.

Every call that the layers of the table of cases make, forward and backward, is made to both, in both dtypes, in
contiguous, channels_last and batch-last memory, and with NaN, infinities, ties and zeros in the arrays.
"""

import json
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from cnn_lightning.layers.bridge import layout
from cnn_lightning.ops import activation, conv, pool
from cnn_lightning.ops.fast import chooser, fused, proof
from cnn_lightning.ops.fast.memory import batch_last
from tests.calls import OPERATIONS, Operation, name_of, recorded, results

EXACT = ("max_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d", "relu", "relu_backward", "relu6", "pad")
"""Operations that choose and copy: not a bit differs."""
PROVEN = [op for op in OPERATIONS if op.__module__.rpartition(".")[2] in chooser.FILES]
"""The formulas that have a fast function."""
TOLERANCE = {np.dtype(np.float64): 1e-11, np.dtype(np.float32): 1e-5}
SPECIAL = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan])


def variants(op: Operation, arrays: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The arrays as they are, in each memory format, and with special values and ties in them."""
    yield arrays
    if any(array is not None and array.ndim == 4 for array in arrays):
        for layout in (_channels_last, batch_last):
            for first in (0, 1):
                yield tuple(
                    layout(array) if index >= first and array is not None and array.ndim == 4 else array
                    for index, array in enumerate(arrays)
                )
    random = np.random.default_rng(0)
    if op.__module__.endswith((".activation", ".pool", ".softmax")):
        yield tuple(_special(array, random) for array in arrays)
    yield tuple(array if array is None or array.dtype.kind != "f" else np.asarray(np.rint(array)) for array in arrays)


def _channels_last(array: Any) -> Any:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _special(array: Any, random: np.random.Generator) -> Any:
    if array is None or array.dtype.kind != "f":
        return array
    values = random.choice(SPECIAL, array.shape).astype(array.dtype)
    return np.where(random.random(array.shape) < 0.3, values, array)


def fast_function(op: Operation) -> Operation:
    """The fast function of a formula: each has one, so that the report of layers tells the truth."""
    module = import_module(op.__module__.replace(".ops.", ".ops.fast."))
    function: Operation | None = getattr(module, op.__name__, None)
    assert function is not None, f"{name_of(op)}: expected a fast function of this name in {module.__file__}, got none"
    return function


def compare(op: Operation, arrays: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Raise AssertionError where formula and fast function differ in values, dtypes, shapes or memory layout."""
    fast = fast_function(op)
    plain = {name: value for name, value in options.items() if name != "needs"}
    with np.errstate(all="ignore"):
        expected = results(layout.as_torch(op.__name__, op(*arrays, **plain), arrays))
        found = results(fast(*arrays, **options))
    needs = options.get("needs", (True,) * len(found))
    for a, b, need in zip(found, expected, needs, strict=True):
        assert (a is not None) == need
        if a is not None:
            equal(np.asarray(a), np.asarray(b), name_of(op), computed_in=arrays)


def equal(a: Any, b: Any, name: str, computed_in: tuple[Any, ...] = ()) -> None:
    """Equal within rounding, that of the narrowest dtype ``computed_in``; what is chosen and copied to the bit."""
    assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{name}: {a.shape} {a.dtype} for {b.shape} {b.dtype}"
    axes = [axis for axis, size in enumerate(a.shape) if size > 1]
    assert a.size == 0 or [a.strides[i] for i in axes] == [b.strides[i] for i in axes], f"{name}: strides"
    if a.dtype.kind != "f" or name.rpartition(".")[2] in EXACT:
        np.testing.assert_array_equal(a, b, err_msg=name)
        return
    tolerance = max(TOLERANCE.get(array.dtype, 0) for array in (a, *computed_in) if array is not None)
    finite = np.abs(b[np.isfinite(b)])
    scale = max(1.0, finite.max(initial=0))
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=name)


def prove(op: Operation) -> None:
    """All calls of one operation."""
    for arrays, options in recorded()[name_of(op)]:
        for given in variants(op, arrays):
            compare(op, given, options)


def prove_chains() -> None:
    """Chains of one to three stages against their formulas one after the other, forward and backward."""
    random = np.random.default_rng(0)
    formats = np.ascontiguousarray, batch_last
    for dtype, stages, bias, arranged in product((np.float64, np.float32), (1, 2, 3), (True, False), formats):
        channels, paddings = [3, 4, 5, 2][: stages + 1], [1, 0, 2][:stages]
        x = arranged(random.standard_normal((5, 3, 22, 19)).astype(dtype))
        parameters: list[Any] = []
        for inside, outside, kernel in zip(channels, channels[1:], (3, 2, 3), strict=False):
            parameters.append(random.standard_normal((outside, inside, kernel, kernel)).astype(dtype) / kernel)
            parameters.append(random.standard_normal(outside).astype(dtype) if bias else None)
        grad_y = random.standard_normal(one_by_one(x, parameters, paddings)[0].shape).astype(dtype)
        y, *kept = fused.conv_relu_pool(x, *parameters, paddings=paddings)
        needs = (True, *(parameter is not None for parameter in parameters))
        found = fused.conv_relu_pool_backward(grad_y, x, *parameters, *kept, paddings=paddings, needs=needs)
        expected = one_by_one(x, parameters, paddings, grad_y)
        for index, (a, b, need) in enumerate(zip((y, *found), expected, (True, *needs), strict=True)):
            if need:
                of_images = arranged if index < 2 else np.ascontiguousarray  # y and the gradient of x
                equal(np.asarray(a), of_images(b), "fused.conv_relu_pool")


def one_by_one(x: Any, parameters: list[Any], paddings: list[int], grad_y: Any = None) -> tuple[Any, ...]:
    """Output, and with ``grad_y`` the gradients of x and the parameters, by formulas."""
    seen: list[Any] = []
    gradients: list[Any] = []
    for weight, bias, padding in zip(parameters[::2], parameters[1::2], paddings, strict=True):
        convolved = conv.conv2d(x, weight, bias, padding=padding)
        active = activation.relu(convolved)
        seen.append((x, weight, padding, convolved, active))
        x = pool.max_pool2d(active, kernel_size=2)
    if grad_y is None:
        return (x,)
    for image, weight, padding, convolved, active in reversed(seen):
        grad = activation.relu_backward(pool.max_pool2d_backward(grad_y, active, kernel_size=2), convolved)
        grad_y, *of_parameters = conv.conv2d_backward(grad, image, weight, padding=padding)
        gradients = [*of_parameters, *gradients]
    return (x, grad_y, *gradients)


def digests() -> dict[str, str | None]:
    """Of all files that the proof is about."""
    modules = [name for file in (*chooser.FILES, *chooser.CHAINS) for name in chooser.modules(file)]
    return {name: proof.digest(name) for name in modules}


def main() -> None:
    """Prove all, and write the digests."""
    for op in PROVEN:
        prove(op)
    prove_chains()
    path = Path(proof.__file__).with_name(proof.LOCK)
    path.write_text(json.dumps(digests(), indent=1) + "\n", encoding="utf-8")
    print(f"{len(PROVEN)} operations and {len(chooser.CHAINS)} chain proven: {path}")


if __name__ == "__main__":
    main()
