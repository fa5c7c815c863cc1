"""The most important numbers of `cnn_lightning.ops.fast.tuning`, measured again on this machine; none is changed.

A *choice* measures the same work with each candidate value. A *limit* measures works of several sizes in two ways: as
below the limit, and as above it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np

from cnn_lightning.ops.fast import activation, blocks, conv, fused, matmul, memory, norm
from cnn_lightning.ops.fast.tuning import tuned
from cnn_lightning.tools.benchmark.timing import Tick, Timing, interleave, threads

SECONDS = 45.0
"""All measurements together take at most about this long; a slow machine measures fewer rounds."""
BURST_SECONDS = 0.02
"""Short bursts give more rounds: then other work on the machine slows all candidates equally."""

KIB, MIB = 2**10, 2**20
NEVER, ALWAYS = 2**62, 0
"""Values of a limit with which every size is below it, or above it."""

Work = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """One line of a measurement: its name, its threads, and the tuned numbers that it runs with."""

    name: str
    threads: int = 1
    numbers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """What is measured for a number: the work for each candidate value, in each of the ways."""

    number: str
    kind: Literal["choice", "from", "up to"]
    work: str
    candidates: tuple[int, ...]
    ways: tuple[Way, ...]
    make: Callable[[int], Work]


@dataclass(frozen=True)
class Found:
    """The times of a trial, by the name of the way and the candidate."""

    trial: Trial
    times: dict[tuple[str, int], Timing]

    def best(self, way: Way) -> int:
        """Of a choice: the fastest candidate in this way."""
        return min(self.trial.candidates, key=lambda candidate: self.times[way.name, candidate].median)

    def limit(self) -> int | None:
        """Of a limit: the smallest candidate from which on, or the largest up to which, the second way is faster.

        None where there is no such candidate.
        """
        below, above = (way.name for way in self.trial.ways)
        sizes = self.trial.candidates[:: -1 if self.trial.kind == "from" else 1]
        found = None
        for size in sizes:
            if self.times[above, size].median >= self.times[below, size].median:
                break
            found = size
        return found


def more_threads(wanted: int) -> int:
    """The number of threads to compare with one: ``wanted``, or two by default, or one on a machine with one core."""
    return wanted if wanted > 1 else min(2, blocks.cores())


def measure(trials: Sequence[Trial], rounds: int, tick: Tick | None = None) -> list[Found]:
    """The times of each trial's candidates and ways; those of one trial take turns."""
    with threads(blocks.get_num_threads()):  # restored at the end
        return [_measured(trial, rounds, SECONDS / len(trials), tick) for trial in trials]


def _measured(trial: Trial, rounds: int, limit: float, tick: Tick | None) -> Found:
    works = {candidate: trial.make(candidate) for candidate in trial.candidates}
    functions = {
        (way.name, candidate): partial(
            _in_way,
            works[candidate],
            way.threads,
            {**way.numbers, trial.number: candidate} if trial.kind == "choice" else way.numbers,
        )
        for way, candidate in product(trial.ways, trial.candidates)
    }
    alone = all(way.threads == 1 for way in trial.ways)
    times = interleave(functions, rounds, name=trial.number, tick=tick, cpu=alone, burst=BURST_SECONDS, limit=limit)
    return Found(trial, times)


def _in_way(work: Work, count: int, numbers: dict[str, int]) -> None:
    if blocks.get_num_threads() != count:
        blocks.set_num_threads(count)
    with tuned(**numbers):
        work()


# ---- what is measured


def trials(many: int) -> list[Trial]:
    """All trials, with one thread and with ``many``; without those about threads if ``many`` is 1."""
    one, both = Way("1 thread"), _choices(many)
    return [
        Trial(
            "block_bytes",
            "choice",
            "convolution 3x3 of contiguous 64x16x14x14 to 32 channels, forward",
            (1 * MIB, 2 * MIB, 4 * MIB, 8 * MIB),
            both,
            lambda _: partial(conv.conv2d, _random(64, 16, 14, 14), _random(32, 16, 3, 3), padding=1),
        ),
        Trial(
            "buffer_values",
            "choice",
            "64 rows of 1,024 values times a number each, 20 times",
            (256, 1024, 8192),
            (one,),
            lambda _: _rows_times_numbers(),
        ),
        _blocks_of_elements("elementwise_block_bytes", one),
        *_about_threads(many),
        Trial(
            "elementwise_row",
            "choice",
            "ReLU, 131,000 values, 20 times",
            (512, 1024, 2048, 4096),
            (one,),
            lambda _: _times(20, partial(activation.relu, _random(128, 1024))),
        ),
        *_of_convolutions(both),
        _limit(
            "norm_run",
            "from",
            "batch norm of 8 images, 64 channels, runs so long, forward and backward, 10 times",
            (16, 64, 256, 1024),
            ("by rows", "by runs"),
            lambda size: _times(10, _batch_norm(8, 64, round(size**0.5))),
            pinned={"norm_few_runs": ALWAYS},
        ),
        _limit(
            "norm_few_runs",
            "up to",
            "batch norm of 8 images of 4x4, so many runs, forward and backward, 10 times",
            (64, 256, 1024, 4096),
            ("by rows", "by runs"),
            lambda size: _times(10, _batch_norm(8, size // 8, 4)),
            pinned={"norm_run": NEVER},
        ),
        Trial(
            "chain_images",
            "choice",
            "SimpleCNN's two stages, 128 images of 1x28x28, forward and backward",
            (8, 16, 32, 64),
            both,
            lambda _: _chain(128),
        ),
        Trial(
            "product_multiplications",
            "choice",
            "16x10, 32x28 and 16x145 by 16,384 columns, and by such a matrix transposed",
            (1, 500_000, 1_000_000, 2_000_000),
            (one,),
            lambda _: _long_products(),
        ),
    ]


def _of_convolutions(both: tuple[Way, ...]) -> list[Trial]:
    """Of batch-last images; the works are forward and backward passes, except for those about gradients."""
    return [
        Trial(
            "conv_column_bytes",
            "choice",
            "convolution 3x3 of 32x64x16x16 and of 32x128x8x8, forward and backward",
            tuple(round(size * MIB) for size in (1.5, 3, 6, 12, 24)),
            both,
            lambda _: _both(_convolution((32, 64, 16, 16), 64, 3), _convolution((32, 128, 8, 8), 128, 3)),
        ),
        _limit(
            "conv_flipped_weight",
            "up to",
            "gradients of a 3x3 convolution with so many values, 8 images",
            (9_216, 36_864, 147_456, 589_824),
            ("as it is", "flipped"),
            _gradients,
        ),
        _limit(
            "conv_turned_weight",
            "up to",
            "gradients of a 3x3 convolution with so many values, 8 images",
            (9_216, 36_864, 147_456, 589_824),
            ("in order", "turned"),
            _gradients,
            pinned={"conv_flipped_weight": ALWAYS, "conv_turned_columns": NEVER},
        ),
        _limit(
            "depthwise_toeplitz",
            "up to",
            "depthwise 3x3 of 8 images, matrices of so many entries, forward and backward",
            (16, 256, 1296, 4096),
            ("bands", "matrix"),
            lambda size: _depthwise(round(size**0.25), 1536),
            pinned={"depthwise_bands": NEVER},
        ),
        _limit(
            "depthwise_bands",
            "up to",
            "depthwise 3x3 of 8 images with so many rows for each column of the kernel",
            (2, 4, 6, 8, 12),
            ("runs", "bands"),
            lambda size: _depthwise(3 * size, 2304),
            pinned={"depthwise_toeplitz": ALWAYS},
        ),
    ]


def _blocks_of_elements(number: str, way: Way) -> Trial:
    return Trial(
        number,
        "choice",
        "ReLU and the gradient of hardswish, 2 million values",
        (128 * KIB, 256 * KIB, 512 * KIB, MIB),
        (way,),
        lambda _: _elementwise(8 * MIB),
    )


def _about_threads(many: int) -> list[Trial]:
    if many == 1:
        return []
    names, threaded = ("1 thread", f"{many} threads"), Way(f"{many} threads", many)
    return [
        _blocks_of_elements("elementwise_parallel_bytes", threaded),
        _limit(
            "elementwise_threads_bytes",
            "from",
            "ReLU of so many bytes",
            (1 * MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB),
            names,
            lambda size: partial(activation.relu, _random(size // 4)),
            many,
        ),
        _limit(
            "depthwise_threads_bytes",
            "from",
            "depthwise 3x3 of 8 images of 16x16, so many bytes, forward and backward",
            (MIB // 2, 1 * MIB, 2 * MIB, 4 * MIB),
            names,
            lambda size: _convolution((8, size // 8192, 16, 16), size // 8192, 3, groups=size // 8192),
            many,
        ),
        _limit(
            "norm_threads_bytes",
            "from",
            "batch norm of images of 64x32x32, so many bytes, forward and backward",
            (4 * MIB, 8 * MIB, 16 * MIB, 32 * MIB),
            names,
            lambda size: _batch_norm(size // (64 * 32 * 32 * 4), 64, 32),
            many,
        ),
        _limit(
            "product_threads",
            "from",
            "256 x 1,152 by a few columns, so many multiplications",
            (4_718_592, 9_437_184, 18_874_368, 37_748_736),
            names,
            lambda size: _lone_product(size // (256 * 1152)),
            many,
        ),
    ]


def _choices(many: int) -> tuple[Way, ...]:
    return tuple(Way(f"{n} thread{'s' * (n > 1)}", n) for n in sorted({1, many}))


def _limit(
    number: str,
    kind: Literal["from", "up to"],
    work: str,
    sizes: tuple[int, ...],
    names: tuple[str, str],
    make: Callable[[int], Work],
    count: int = 1,
    pinned: dict[str, int] | None = None,
) -> Trial:
    """A trial of two ways; the number enables the second from its own size on, or up to its own size."""
    first, second = (NEVER, ALWAYS) if kind == "from" else (ALWAYS, NEVER)
    ways = tuple(
        Way(name, count, {**(pinned or {}), number: value}) for name, value in zip(names, (first, second), strict=True)
    )
    return Trial(number, kind, work, sizes, ways, make)


def _random(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _convolution(shape: tuple[int, ...], channels: int, kernel: int, groups: int = 1, *, forward: bool = True) -> Work:
    """Both passes of a convolution of batch-last images, or the backward alone."""
    x, weight = memory.batch_last(_random(*shape)), _random(channels, shape[1] // groups, kernel, kernel)
    grad_y = memory.batch_last(_random(shape[0], channels, *shape[2:]))
    options: dict[str, Any] = {"padding": kernel // 2, "groups": groups}

    def work() -> None:
        if forward:
            conv.conv2d(x, weight, **options)
        conv.conv2d_backward(grad_y, x, weight, **options)

    return work


def _gradients(values: int) -> Work:
    """The backward of a 3x3 convolution with such a weight, on images as ResNet has them."""
    channels = round((values / 9) ** 0.5)
    size = min(16, 1024 // channels)
    return _convolution((8, channels, size, size), channels, 3, forward=False)


def _depthwise(size: int, values: int) -> Work:
    """Both passes on square images of this size with so many rows in all channels together."""
    channels = max(1, values // size)
    return _convolution((8, channels, size, size), channels, 3, groups=channels)


def _both(first: Work, second: Work) -> Work:
    return lambda: (first(), second())


def _times(count: int, work: Work) -> Work:
    def repeated() -> None:
        for _ in range(count):
            work()

    return repeated


def _elementwise(nbytes: int) -> Work:
    x = _random(1024, nbytes // 4096)

    def work() -> None:
        activation.relu(x)
        activation.hardswish_backward(x, x)

    return work


def _rows_times_numbers() -> Work:
    rows, numbers = _random(64, 1024), _random(64, 1)
    out = np.empty_like(rows)

    def work() -> None:
        with blocks.one_blas_thread():
            for _ in range(20):
                np.multiply(rows, numbers, out=out)

    return work


def _batch_norm(images: int, channels: int, size: int) -> Work:
    x, weight = _random(images, channels, size, size), _random(channels)

    def work() -> None:
        y, mean, var = norm.batch_norm(x, weight, weight)
        norm.batch_norm_backward(y, x, weight, mean, var)

    return work


def _chain(images: int) -> Work:
    x, parameters = _random(images, 1, 28, 28), [_random(16, 1, 3, 3), _random(16), _random(32, 16, 3, 3), _random(32)]
    needs = (False, True, True, True, True)

    def work() -> None:
        y, *kept = fused.conv_relu_pool(x, *parameters, paddings=(1, 1))
        fused.conv_relu_pool_backward(y, x, *parameters, *kept, paddings=(1, 1), needs=needs)

    return work


def _long_products() -> Work:
    smalls = [_random(*shape) for shape in ((16, 10), (32, 28), (16, 145))]
    longs = [(_random(small.shape[1], 16384), _random(len(small), 16384)) for small in smalls]

    def work() -> None:
        with blocks.one_blas_thread():
            for small, (wide, out) in zip(smalls, longs, strict=True):
                matmul.times(small, wide, out)
                matmul.times_transposed(out, wide)

    return work


def _lone_product(columns: int) -> Work:
    small, wide = _random(256, 1152), _random(1152, columns)
    out = _random(256, columns)
    return partial(matmul.times, small, wide, out)
