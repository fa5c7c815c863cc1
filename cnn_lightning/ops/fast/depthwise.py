"""Depthwise convolution of images (C, H, W, N): one small image filter for each channel.

Three ways, by the size of the image:

* all of a tiny image with one Toeplitz matrix (H' W', H W) a channel;
* a small one with one band matrix (H', H) for each column of the kernel: the columns shift by runs of N;
* a large one with a multiplication and an addition for each pixel of the kernel, over the padded image as one run.

Matrices have zeros for pixels that are not under the kernel, and none for the padding. Zero times infinity is NaN.
Therefore all results are checked; with a NaN, which an infinite weight gives too, the caller computes them by columns.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from cnn_lightning.ops.expect import Geometry
from cnn_lightning.ops.fast import blocks, patches, tuning
from cnn_lightning.ops.fast.patches import Component
from cnn_lightning.ops.fast.sums import row_sums
from cnn_lightning.ops.types import Array


def forward(x: Array, weight: Array, g: Geometry, y: Array) -> bool:
    """Write the convolution of ``x`` (C, H, W, N) with ``weight`` (C, 1, kh, kw) into ``y`` (C, H', W', N).

    Returns False if the result is not to be used.
    """
    way = _way(g)
    if way is None or not y.size:
        return False
    blocks.run(lambda part: way.forward(x[part], weight[part, 0], g, y[part]), _parts(g, x), parallel=_is_large(g, x))
    return not blocks.may_hold_nan(y)


def backward(
    grad_y: Array, x: Array, weight: Array, g: Geometry, grad_x: Array | None, grad_weight: Array | None
) -> bool:
    """Write both gradients, unless None, in the shapes of ``x`` and ``weight``; as `forward`."""
    way = _way(g)
    if way is None or not grad_y.size:
        return False

    def block(part: slice) -> None:
        if grad_weight is not None:
            way.of_weight(grad_y[part], x[part], g, grad_weight[part, 0])
        if grad_x is not None:
            way.of_x(grad_y[part], weight[part, 0], g, grad_x[part])

    blocks.run(block, _parts(g, x), parallel=_is_large(g, x))
    return not any(result is not None and blocks.may_hold_nan(result) for result in (grad_x, grad_weight))


def _way(g: Geometry) -> "type[_Toeplitz | _Bands | _Runs] | None":
    numbers = tuning.TUNING
    if g.h * g.w * g.oh * g.ow <= numbers.depthwise_toeplitz:
        return _Toeplitz
    if g.stride == (1, 1) and g.h <= numbers.depthwise_bands * g.kernel[1]:
        return _Bands
    return _Runs if patches.components(g)[0].steps == (1, 1) else None


def _parts(g: Geometry, x: Array) -> list[slice]:
    """Blocks of channels, since channels are independent."""
    return blocks.blocks(g.c, 3 * g.n * (g.h + sum(g.pad[0])) * (g.w + sum(g.pad[1])) * x.itemsize)


def _is_large(g: Geometry, x: Array) -> bool:
    return x.nbytes >= tuning.TUNING.depthwise_threads_bytes


Lines = tuple[tuple[slice, slice], ...]


@lru_cache(1024)
def _lines(size: int, pad: int, kernel: int, stride: int, dilation: int, outputs: int) -> Lines:
    """For each pixel of the kernel along one axis: the outputs with an input under it, and these inputs."""
    found = []
    for i in range(kernel):
        offset = i * dilation - pad
        first = max(0, -(offset // stride))
        stop = max(first, min(outputs, (size - 1 - offset) // stride + 1))
        begin = first * stride + offset
        inputs = slice(begin, begin + (stop - first - 1) * stride + 1, stride) if stop > first else slice(0, 0)
        found.append((slice(first, stop), inputs))
    return tuple(found)


def _rows(g: Geometry) -> Lines:
    return _lines(g.h, g.pad[0][0], g.kernel[0], g.stride[0], g.dilation[0], g.oh)


def _columns(g: Geometry) -> Lines:
    return _lines(g.w, g.pad[1][0], g.kernel[1], g.stride[1], g.dilation[1], g.ow)


class _Toeplitz:
    """``y = T @ x`` for the pixels of a channel, with ``T[(u, v), (r, s)] = weight[i, j]`` if (i, j) is there."""

    @staticmethod
    def forward(x: Array, weight: Array, g: Geometry, y: Array) -> None:
        c = len(x)
        np.matmul(_Toeplitz.matrices(weight, g), x.reshape(c, -1, g.n), out=y.reshape(c, -1, g.n))

    @staticmethod
    def of_x(grad_y: Array, weight: Array, g: Geometry, grad_x: Array) -> None:
        matrices, c = _Toeplitz.matrices(weight, g).swapaxes(1, 2), len(weight)
        np.matmul(matrices, grad_y.reshape(c, -1, g.n), out=grad_x.reshape(c, -1, g.n))

    @staticmethod
    def of_weight(grad_y: Array, x: Array, g: Geometry, grad_weight: Array) -> None:
        c = len(x)
        products = np.matmul(grad_y.reshape(c, -1, g.n), x.reshape(c, -1, g.n).swapaxes(1, 2))
        places = _of_image(_of_one(g), x.dtype)
        grad_weight[...] = np.matmul(products.reshape(c, -1), places.T).reshape(grad_weight.shape)

    @staticmethod
    def matrices(weight: Array, g: Geometry) -> Array:
        """(C, H' W', H W)."""
        places = _of_image(_of_one(g), weight.dtype)
        return np.matmul(weight.reshape(len(weight), -1), places).reshape(len(weight), g.oh * g.ow, g.h * g.w)


def _of_one(g: Geometry) -> Geometry:
    """What is equal for any number of images and channels."""
    return g._replace(n=1, c=1, o=1, groups=1)


@lru_cache(1024)
def _of_image(g: Geometry, dtype: Any) -> Array:
    """Ones where a weight (i, j) stands in a flat Toeplitz matrix: (kh kw, H' W' H W), zeros elsewhere.

    A product of the weights with it is the matrix, and its transpose adds the entries of each weight.
    """
    places = np.zeros((*g.kernel, g.oh, g.ow, g.h, g.w), dtype)
    for i, (rows, inputs) in enumerate(_rows(g)):
        for j, (columns, pixels) in enumerate(_columns(g)):
            u, v = (np.arange(each.start, each.stop) for each in (rows, columns))
            r, s = (np.arange(each.start, each.stop, each.step) for each in (inputs, pixels))
            places[i, j, u[:, None], v, r[:, None], s] = 1
    return places.reshape(g.kernel[0] * g.kernel[1], -1)


@lru_cache(1024)
def _of_rows(g: Geometry, dtype: Any) -> Array:
    """`_of_image` for the band matrices of rows: (kh, H' H)."""
    places = np.zeros((g.kernel[0], g.oh, g.h), dtype)
    for i, (rows, inputs) in enumerate(_rows(g)):
        places[i, np.arange(rows.start, rows.stop), np.arange(inputs.start, inputs.stop, inputs.step)] = 1
    return places.reshape(g.kernel[0], -1)


class _Bands:
    """``y[:, v] += B_j @ x[:, v + j - left]`` for each column j of the kernel, with ``B_j[u, r] = weight[i, j]``."""

    @staticmethod
    def forward(x: Array, weight: Array, g: Geometry, y: Array) -> None:
        _Bands.shifted(_Bands.matrices(weight, g), x, g, y, [*_columns(g)])

    @staticmethod
    def of_x(grad_y: Array, weight: Array, g: Geometry, grad_x: Array) -> None:
        matrices = _Bands.matrices(weight, g).swapaxes(2, 3)
        _Bands.shifted(matrices, grad_y, g, grad_x, [(s, v) for v, s in _columns(g)])

    @staticmethod
    def shifted(matrices: Array, x: Array, g: Geometry, y: Array, columns: list[tuple[slice, slice]]) -> None:
        """``y[:, :, to] += matrices[j] @ x[:, :, of]`` for the columns of each j; the widest one is written first."""
        c, n = len(x), g.n
        source, result = x.reshape(c, x.shape[1], -1), y.reshape(c, y.shape[1], -1)
        order = sorted(range(len(columns)), key=lambda j: columns[j][0].start - columns[j][0].stop)
        if columns[order[0]][0] != slice(0, y.shape[2]):
            result[...] = 0
        for place, j in enumerate(order):
            to, of = (slice(each.start * n, each.stop * n) for each in columns[j])
            if to.start >= to.stop:
                continue
            if place == 0 and to == slice(0, result.shape[2]):
                np.matmul(matrices[j], source[:, :, of], out=result)
                continue
            product = blocks.scratch("depthwise product", (c, result.shape[1], to.stop - to.start), like=x)
            np.matmul(matrices[j], source[:, :, of], out=product)
            target = result[:, :, to]
            target += product

    @staticmethod
    def of_weight(grad_y: Array, x: Array, g: Geometry, grad_weight: Array) -> None:
        c, n = len(x), g.n
        upstream, pixels = grad_y.reshape(c, g.oh, -1), x.reshape(c, g.h, -1).swapaxes(1, 2)
        for j, (to, of) in enumerate(_columns(g)):
            outputs = upstream[:, :, to.start * n : to.stop * n]
            products = np.matmul(outputs, pixels[:, of.start * n : of.stop * n])
            grad_weight[:, :, j] = np.matmul(products.reshape(c, -1), _of_rows(_of_one(g), x.dtype).T)

    @staticmethod
    def matrices(weight: Array, g: Geometry) -> Array:
        """(kw, C, H', H)."""
        places = _of_rows(_of_one(g), weight.dtype)
        return np.matmul(weight.transpose(2, 0, 1), places).reshape(g.kernel[1], len(weight), g.oh, g.h)


class _Runs:
    """The padded image of a channel as one run: ``y += weight[i, j] * run[at (i, j):]``, for each polyphase component.

    Rows of outputs have the width of the component; their surplus columns are not used.
    """

    @staticmethod
    def forward(x: Array, weight: Array, g: Geometry, y: Array) -> None:
        total, term = (_Runs.outputs(f"depthwise {name}", x, g) for name in ("output", "product"))
        first = True
        for component in _Runs.components(x, g):
            image = _Runs.padded(x, component)
            for (i, j), at in _Runs.taps(component, g):
                out = total if first else term
                np.multiply(image[:, at : at + total.shape[1]], weight[:, i, j, None], out=out)
                if not first:
                    total += term
                first = False
        y[...] = _Runs.image(total, g, width=_Runs.components(x, g)[0].shape[2])

    @staticmethod
    def of_weight(grad_y: Array, x: Array, g: Geometry, grad_weight: Array) -> None:
        upstream = _Runs.upstream(grad_y, g)
        for component in _Runs.components(x, g):
            image = _Runs.padded(x, component)
            for (i, j), at in _Runs.taps(component, g):
                grad_weight[:, i, j] = row_sums(upstream, image[:, at : at + upstream.shape[1]])

    @staticmethod
    def of_x(grad_y: Array, weight: Array, g: Geometry, grad_x: Array) -> None:
        upstream = _Runs.upstream(grad_y, g)
        term = _Runs.outputs("depthwise product", grad_y, g)
        for component in _Runs.components(grad_x, g):
            image = blocks.scratch("depthwise image", (*component.shape, g.n), like=grad_y)
            image[...] = 0
            flat = image.reshape(len(image), -1)
            for (i, j), at in _Runs.taps(component, g):
                np.multiply(upstream, weight[:, i, j, None], out=term)
                target = flat[:, at : at + upstream.shape[1]]
                target += term
            grad_x[component.pixels] = image[component.inside]

    @staticmethod
    def components(x: Array, g: Geometry) -> tuple[Component, ...]:
        return patches.components(g._replace(c=len(x), o=len(x), groups=len(x)))

    @staticmethod
    def padded(x: Array, component: Component) -> Array:
        """One component of the padded image of each channel, as a run."""
        image = blocks.scratch("depthwise image", (*component.shape, x.shape[3]), like=x)
        for outside in component.border:
            image[outside] = 0
        image[component.inside] = x[component.pixels]
        return image.reshape(len(x), -1)

    @staticmethod
    def taps(component: Component, g: Geometry) -> Iterator[tuple[tuple[int, int], int]]:
        """For each pixel of the kernel that reads the component: where its run begins."""
        _, rows, columns = component.taps
        pixels = product(range(g.kernel[0])[rows], range(g.kernel[1])[columns])
        for place, (_, row, column) in zip(pixels, component.windows, strict=True):
            yield place, (row.start * component.shape[2] + column.start) * g.n

    @staticmethod
    def outputs(name: str, like: Array, g: Geometry) -> Array:
        """Scratch memory for rows of outputs as runs, from the first output to the last."""
        width = _Runs.components(like, g)[0].shape[2]
        wide = blocks.scratch(name, (len(like), g.oh * width * g.n), like=like)
        return wide[:, : ((g.oh - 1) * width + g.ow) * g.n]

    @staticmethod
    def image(runs: Array, g: Geometry, width: int) -> Array:
        """The view (C, H', W', N) of `outputs` whose rows have this width."""
        of_channel, of_value = runs.strides
        strides = of_channel, width * g.n * of_value, g.n * of_value, of_value
        return np.lib.stride_tricks.as_strided(runs, (len(runs), g.oh, g.ow, g.n), strides)

    @staticmethod
    def upstream(grad_y: Array, g: Geometry) -> Array:
        """``grad_y`` as runs, with zeros in the surplus columns."""
        width = _Runs.components(grad_y, g)[0].shape[2]
        wide = blocks.scratch("depthwise upstream", (len(grad_y), g.oh, width, g.n), like=grad_y)
        wide[:, :, : g.ow] = grad_y
        wide[:, :, g.ow :] = 0
        return wide.reshape(len(wide), -1)[:, : ((g.oh - 1) * width + g.ow) * g.n]
