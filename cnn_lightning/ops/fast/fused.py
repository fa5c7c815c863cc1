"""A chain of convolution, ReLU and 2x2 max-pooling, computed for one block of images after the other.

Layer by layer, each step writes a whole batch to memory and reads it back, forward and backward. Here all stages are
computed for a block of images while it is in cache. For the backward, a stage saves its pooled output and four
comparisons for each of its pixels.

`stage` has the computation of one stage for one block.
"""

from collections.abc import Sequence
from math import prod

from cnn_lightning.ops.fast import blocks, memory, tuning
from cnn_lightning.ops.fast.stage import Stage
from cnn_lightning.ops.types import Array


def conv_relu_pool(
    x: Array, *parameters: Array | None, paddings: Sequence[int], keep: bool = True
) -> tuple[Array, ...] | Array:
    """``x = max_pool2d(relu(conv2d(x, weight, bias, padding=padding)), 2)`` for each stage in turn.

    Args:
        x: Images (N, C, H, W), contiguous or batch-last; y has the same format.
        parameters: For each stage its kernels (O, C, kh, kw) and its bias, (O,) or None.
        paddings: For each stage the zeros around its images.
        keep: Whether to return what the backward needs; otherwise only y.

    Returns:
        ``(y, *winners, *images)``: the output of the last stage (N, O, h, w), ``h = (H + 2*padding - kh + 1) // 2``,
        and what the backward needs, flat and block by block: the winners of each stage, and the input of each stage
        except the first. Winners are four comparisons for each pooled pixel: whether the right pixel of the upper pair
        is larger, the same for the lower pair, whether the lower pair is larger, and whether the result is positive. As
        in `max_pool2d`, the first of equal pixels wins, and NaN wins.
    """
    stages = _stages(x, parameters, paddings)
    y = memory.empty_as(x, (len(x), *stages[-1].pooled))
    kept = stages if keep else []
    winners = [blocks.empty((len(x) * 4 * stage.pixels,), like=x, dtype=bool) for stage in kept]
    images = [blocks.empty((len(x) * stage.pixels,), like=x) for stage in kept[:-1]]

    def block(part: slice) -> None:
        image = x[part].transpose(1, 2, 3, 0)
        for index, stage in enumerate(stages):
            if index < len(images):
                pooled = _part(images[index], part, *stage.pooled)
            else:
                pooled = stage.memory(part.stop - part.start).pooled
            stage.forward(image, pooled, _part(winners[index], part, 4, *stage.pooled) if keep else None)
            image = pooled
        y[part] = image.transpose(3, 0, 1, 2)

    blocks.run(block, _parts(len(x), stages))
    return (y, *winners, *images) if keep else y


def conv_relu_pool_backward(
    grad_y: Array, x: Array, *saved: Array | None, paddings: Sequence[int], needs: Sequence[bool]
) -> tuple[Array | None, ...]:
    """Gradients of `conv_relu_pool` with respect to x and, for each stage, its kernels and its bias.

    From the last stage to the first: the upstream gradient G is 0 where the output of ReLU is 0, and belongs to the one
    pixel of each window that won; then ``grad_weight = G X^T``, and ``grad_x`` from ``W^T G``, as in `conv2d_backward`.

    Args:
        grad_y: (N, O, h, w).
        x: Images (N, C, H, W).
        saved: The parameters of `conv_relu_pool`, then the winners and images it returned.
        paddings: As in `conv_relu_pool`.
        needs: Whether x, and each of the parameters, needs its gradient.
    """
    count = len(paddings)
    stages = _stages(x, saved[: 2 * count], paddings)
    winners, images = _arrays(saved[2 * count : 3 * count]), _arrays(saved[3 * count :])
    needs_x, needs_weight, needs_bias = needs[0], needs[1::2], needs[2::2]
    grad_x = memory.empty_as(x, x.shape) if needs_x else None
    lowest = 0 if needs_x else (list(needs).index(True) - 1) // 2  # stages before it need no gradient

    def block(part: slice) -> list[Array | None]:
        gradient = stages[-1].memory(part.stop - part.start).pooled
        gradient[...] = grad_y[part].transpose(1, 2, 3, 0)
        sums: list[Array | None] = [None] * count
        for index in range(count - 1, lowest - 1, -1):
            stage = stages[index]
            upstream = stage.route(gradient, _part(winners[index], part, 4, *stage.pooled))
            if needs_weight[index]:
                image = _part(images[index - 1], part, *stage.shape) if index else x[part].transpose(1, 2, 3, 0)
                sums[index] = stage.grad_weight(image, upstream)
            elif needs_bias[index]:
                sums[index] = upstream.sum(1)[None]
            if index > lowest or needs_x:
                gradient = stage.grad_image(upstream)
        if grad_x is not None:
            grad_x[part] = gradient.transpose(3, 0, 1, 2)
        return sums

    gradients = [grad_x]
    for stage, *parts in zip(stages, *blocks.run(block, _parts(len(x), stages)), strict=True):
        gradients += stage.gradients(parts)
    return tuple(gradient if need else None for gradient, need in zip(gradients, needs, strict=True))


def _stages(x: Array, parameters: Sequence[Array | None], paddings: Sequence[int]) -> list[Stage]:
    shape, stages = x.shape[1:], []
    for weight, bias, padding in zip(parameters[::2], parameters[1::2], paddings, strict=True):
        assert weight is not None
        stages.append(Stage(shape, weight, bias, padding))
        shape = stages[-1].pooled
    return stages


def _parts(n: int, stages: Sequence[Stage]) -> list[slice]:
    """Blocks of images; an even number of them if two threads pay."""
    image = max(1, *(stage.bytes for stage in stages))
    numbers = tuning.TUNING
    count = -(-n // max(1, min(numbers.chain_images, numbers.chain_block_bytes // image)))
    return blocks.cut(n, count, even=n * image >= numbers.chain_threads_bytes)


def _part(flat: Array, part: slice, *shape: int) -> Array:
    """One block of an array that is stored block by block, with its images last."""
    each = prod(shape)
    return flat[each * part.start : each * part.stop].reshape(*shape, -1)


def _arrays(saved: Sequence[Array | None]) -> list[Array]:
    return [array for array in saved if array is not None]
