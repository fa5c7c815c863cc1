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

from cnn_lightning.ops.fast import activation, blocks, conv, fused, matmul, norm
from cnn_lightning.ops.fast.tuning import tuned
from cnn_lightning.tools.benchmark.timing import Tick, Timing, interleave, threads

SECONDS = 36.0
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
    return Found(trial, interleave(functions, rounds, name=trial.number, tick=tick, burst=BURST_SECONDS, limit=limit))


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
            "convolution 3x3 of 64x16x14x14 to 32 channels, forward and backward",
            (1 * MIB, 2 * MIB, 4 * MIB, 8 * MIB),
            both,
            lambda _: _convolution((64, 16, 14, 14), 32, 3),
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
        _limit(
            "conv_pointwise_pixels",
            "from",
            "convolution 1x1 of 8 images, 256 channels to 256, forward and backward",
            (16, 36, 64, 144, 256),
            ("all images", "per image"),
            lambda size: _convolution((8, 256, round(size**0.5), round(size**0.5)), 256, 1),
        ),
        _limit(
            "conv_small_weight",
            "from",
            "gradient of a 3x3 weight of so many values, 8 images of 8x8",
            (9_216, 36_864, 147_456, 589_824),
            ("turned", "in order"),
            lambda size: _weight_gradient(round((size / 9) ** 0.5)),
        ),
        _limit(
            "depthwise_pixels",
            "up to",
            "depthwise 3x3 of 8 images, 32 channels, rows so long, forward and backward",
            (32, 64, 96, 128),
            ("columns", "bands"),
            lambda size: _convolution((8, 32, 32, size), 32, 3, groups=32),
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
            "conv_columns",
            "from",
            "convolution 3x3 of 8 images, 128 channels, so many columns, forward",
            (128, 256, 512, 1024),
            ("one block", "two blocks"),
            _few_columns,
            many,
            {"block_bytes": 64 * MIB},
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
            lambda size: _batch_norm(size // (64 * 32 * 32 * 4)),
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


def _convolution(shape: tuple[int, ...], channels: int, kernel: int, groups: int = 1) -> Work:
    x, weight = _random(*shape), _random(channels, shape[1] // groups, kernel, kernel)
    grad_y = _random(shape[0], channels, *shape[2:])
    options: dict[str, Any] = {"padding": kernel // 2, "groups": groups}

    def work() -> None:
        conv.conv2d(x, weight, **options)
        conv.conv2d_backward(grad_y, x, weight, **options)

    return work


def _few_columns(count: int) -> Work:
    height = 4 if count < 512 else 8
    return partial(conv.conv2d, _random(8, 128, height, count // 8 // height), _random(128, 128, 3, 3), padding=1)


def _weight_gradient(channels: int) -> Work:
    x, weight = _random(8, channels, 8, 8), _random(channels, channels, 3, 3)
    return partial(conv.conv2d_backward, x, x, weight, padding=1, needs=(False, True, False))


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


def _batch_norm(images: int) -> Work:
    x, weight = _random(images, 64, 32, 32), _random(64)

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
    return partial(matmul.times, small, wide, out, alone=True)
