"""Every number that was found by measurement, with the measurement.

Amounts of memory are in bytes, for float64 half as many values as for float32. Any other number is a count of its unit.
Times were measured on virtual machines with two cores and AVX-512, in float32 unless stated otherwise. ``cnn-lightning
benchmark --tune`` measures the most important ones again on its machine.

Some of these numbers decide how sums are cut into blocks, and so the last digits of results. An edit needs a new proof,
as for any file here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any


def _number(value: int, unit: str, decides: str) -> Any:
    return field(default=value, metadata={"unit": unit, "decides": decides})


@dataclass(frozen=True)
class Tuning:
    """The numbers, by the file that uses them."""

    # ---- blocks: blocks of the batch, and memory

    block_bytes: int = _number(4 * 2**20, "bytes", "the working set of a block of images")
    """On cores with 2 MiB of L2 and a large L3, SimpleCNN's second stage, forward and backward: 9.2 ms with 1 MiB, 8.5
    with 2, 7.8 with 4 (fewer calls into NumPy, longer matrix products)."""
    buffer_values: int = _number(1024, "values", "NumPy's buffer inside an operation")
    """Rows shorter than NumPy's buffer of 8,192 values are copied into it if an operand is broadcast. Casts through a
    buffer of that size are slower, too. With 8,192, 1,024 and 256: 64 rows of 1,024 times one number each
    20.5, 8.2 and 8.7 us; whole numbers times flags 27, 21 and 29 us."""
    recycled_bytes: int = _number(64 * 2**10, "bytes", "outputs from this size on use recycled memory")
    """A new large array costs a page fault every 4 KiB, which is a sixth of a training step of SimpleCNN. Below this
    size, malloc itself reuses memory. The limit itself was not measured."""
    idle_allocations: int = _number(512, "allocations", "after so many, unused memory is released")
    """So that the next training step uses the memory of this one. Not measured."""
    kept_views: int = _number(256, "sets", "sets of views of scratch memory that a thread keeps")
    """One for each stage of a chain and size of a block; this limits the memory of a thread. Not measured."""

    # ---- activation: blocks of elementwise operations

    elementwise_block_bytes: int = _number(256 * 2**10, "bytes", "a block's result, on one thread")
    """2 million values, microseconds on one thread with blocks of 128, 256 and 512 KiB: relu 878, 788, 740; the
    gradient of hardswish, with more intermediate results to keep in cache, 4235, 4423, 5169."""
    elementwise_parallel_bytes: int = _number(512 * 2**10, "bytes", "a block's result, on several threads")
    """The same on two threads: relu 1172, 913, 628; the gradient of hardswish 6653, 5430, 4612. With short blocks two
    threads wait for each other, because each call into NumPy begins and ends with the interpreter's lock."""
    elementwise_threads_bytes: int = _number(8 * 2**20, "bytes", "results from which several threads pay")
    """Compared with bytes times the passes of the operation, which are more for exp and tanh. See the blocks above:
    8 MiB are the 2 million values for which two threads took 628 us and one 788."""

    elementwise_row: int = _number(2048, "values", "of a row of zeros, against which ReLU compares")
    """131,000 values: with the number 0 54 us, with rows of 512, 1,024, 2,048 and 4,096 zeros 16.8, 13.0, 10.5 and
    10.5."""

    # ---- pool

    pool_block_bytes: int = _number(2 * 2**20, "bytes", "of the planes of images in a block")
    """8x64x32x32 in batch-last memory, maximum of 3x3 with stride 2, forward and backward, with blocks of 256 KiB, 512
    KiB, 1 and 4 MiB: 296 and 1393, 238 and 1140, 225 and 1013, 208 and 954 us: fewer calls into NumPy. Blocks of 2 MiB
    limit the scratch memory, which is about three times a block."""
    pool_threads_bytes: int = _number(8 * 2**20, "bytes", "images from which several threads pay")
    """Smaller ones take less than 5 ms, in calls of less than 20 us. Not measured separately."""
    pool_few_pixels: int = _number(8, "pixels", "of contiguous windows, up to which they are added one by one")
    """The means of 8x512x2x2: 51 us by `sum`, 23 one by one."""

    # ---- conv and patches

    conv_kept_bytes: int = _number(512 * 2**10, "bytes", "padded images up to this keep their zeros for the next call")
    """So that four short calls of NumPy are left out: 512x2x2, 8 images, 69 -> 52 us; 64x16x16, where the copies take
    most of the time, 103 -> 106."""
    kept_geometries: int = _number(1024, "geometries", "kept for calls with the same shapes")
    """A network has one for each convolution and size of the batch. Not measured."""

    # ---- sums

    sum_piece: int = _number(4096, "values", "of a row that are added in float32")
    """64 rows of 2,048 values: 6 us by pieces, 22 by ``sum`` in float32, 38 by ``sum`` in float64. With pieces of up to
    4,096 values the sum is within 7e-7 of that in float64."""

    # ---- conv_pixels

    conv_column_bytes: int = _number(3 * 2**20, "bytes", "columns of a block")
    """3x3, forward and backward, one thread, blocks of 1.5, 3, 6, 12 and 24 MiB: 8x64x32x32 9.9, 10.0, 10.4, 10.3, 10.4
    ms; 32x64x16x16 9.7, 9.4, 9.4, 9.5, 9.7; 32x128x8x8 8.5, 8.4, 8.8, 8.9, 8.9; 32x64x32x32 38.5, 37.3, 36.9, 39.9,
    43.7."""
    conv_strip: int = _number(256, "columns", "in a block of rows, at least")
    """With fewer, the output's channels are halved for threads. One thread, 128 x 1,152 by 512 columns: whole 0.70 ms,
    halves of the columns 0.73, of the rows 0.80; 256 x 2,304 by 128 columns: 0.64, 0.68, 0.69; 512 x 4,608 by 32: 0.74,
    0.90, 0.75."""
    conv_flipped_weight: int = _number(200_000, "values", "weights up to this are flipped for the input's gradient")
    """Both gradients, one thread, flipped and not: 8x64x16x16 to 64 channels 1.69, 1.90 ms; 8x128x8x8 to 128 1.74,
    1.82; 8x256x4x4 to 256, 590,000 values, 2.39, 1.95; with 32 images 6.8, 8.0; 6.2, 6.5; 6.6, 6.2."""
    conv_turned_weight: int = _number(150_000, "values", "weights smaller than this get a transposed gradient")
    """The gradient of the weight as ``columns @ grad_y^T``, and as ``grad_y @ columns^T``, with that of the input, 8
    images, one thread: 37,000 values 1.90, 2.20 ms; 147,000 1.82, 1.88; 295,000 1.33, 1.11; 590,000 2.69, 1.95."""

    conv_turned_columns: int = _number(100, "values", "of such a weight for each column, at most")
    """Turning costs time for each value, and the order of factors gains it for each column. Turned and not, both
    gradients, one thread: 131,000 values and 32 columns 0.31, 0.15 ms; 33,000 and 128 0.18, 0.14; 25,000 and 512 0.29,
    0.33; 147,000 and 2,048 6.5, 7.1."""

    # ---- depthwise

    depthwise_toeplitz: int = _number(1024, "entries", "of a channel's Toeplitz matrix, at most")
    """Toeplitz, bands and runs, 8 images, forward and backward, one thread: 960 channels of 2x2 0.32, 0.64, 1.10 ms;
    384 of 4x4 0.47, 0.47, 1.01; with 4,096 entries, 192 of 8x8, 1.92, 0.44, 0.83; with stride 2 and 1,024 entries, 192
    of 8x8, 0.64 and by runs 0.80."""
    depthwise_bands: int = _number(6, "rows", "for each column of the kernel, of images that are computed with bands")
    """Bands and runs, forward and backward, one thread: 3x3 on 144 channels of 16x16, 8 images 1.13, 1.65 ms, 32 images
    3.8, 6.9; on 32 channels of 32x32, 32 images 7.1, 5.5; 7x7 on 96 channels of 16x16, 8 images 2.2, 5.7."""
    depthwise_threads_bytes: int = _number(2 * 2**20, "bytes", "outputs from which several threads pay")
    """3x3, backward on one thread and on two: 8x144x16x16 2.4, 3.8 ms (many small matrix products wait for each other
    inside OpenBLAS), 8x64x32x32 4.7, 3.0, 64x512x4x4 7.0, 6.0."""

    # ---- fused and stage: chains of convolution, ReLU and pooling

    chain_images: int = _number(32, "images", "in a block of a chain, at most")
    """NumPy works on runs of the block's number of images times the width of an image, and a block should stay in
    cache. SimpleCNN on 28x28 and 32x32 images, 8, 16, 32 and 64 in a block, forward and backward, one thread: 10.4,
    9.4, 9.3, 9.2 ms and 54.9, 51.6, 51.0, 55.3 ms; two threads: 12.3, 8.1, 6.7 and 36.5, 31.8, 28.2 ms."""
    chain_block_bytes: int = _number(16 * 2**20, "bytes", "columns and phases of a chain's block, at most")
    """A block should stay in cache. This limits the memory of large images, too. Not measured separately."""
    chain_threads_bytes: int = _number(2 * 2**20, "bytes", "of a batch, from which the number of blocks is even")
    """Columns and phases of a batch. With fewer, to wake another thread costs as much as it saves."""
    chain_piece_shortest: int = _number(96, "columns", "in a piece of a chain's product, at least")
    """So that a call of OpenBLAS has enough work. Not measured separately."""
    chain_piece_longest: int = _number(256, "columns", "in a piece of a chain's product, at most")
    """With 6,272 columns on one thread, whole -> in contiguous pieces of 112, 32 x 145 by columns reaches 78 -> 122
    GFLOP/s, 144 x 32 by gradients 102 -> 137, but columns by gradients 93 -> 80."""
    chain_pieces: int = _number(4, "pieces", "of a row of a chain's columns, at most")
    """Rows that would need more pieces than this stay whole. Not measured."""

    # ---- matmul

    product_multiplications: int = _number(1_000_000, "multiplications", "products up to this are not copied first")
    """The limit of OpenBLAS for the kernels that do not copy the factors; the table is in `matmul`."""
    product_longest: int = _number(1024, "columns", "in a piece of a long product, at most")
    """A power of two, halved until a piece has no more than ``product_multiplications``; see the table in `matmul`."""
    product_shortest: int = _number(256, "columns", "in a piece of a long product, at least")
    """32 x 145 would need pieces of 128 columns: 92 GFLOP/s whole, 87 in pieces; see the table in `matmul`."""
    product_threads: int = _number(15_000_000, "multiplications", "from which two threads pay for a single product")
    """About 300 microseconds. For less it does not pay to wake a thread, which takes about 150."""

    # ---- norm

    norm_run: int = _number(64, "values", "length from which runs are summed one by one")
    """Sum and dot product of each channel: 8 images of 256 channels of 16 values by runs 35 us, by rows 11; 128 of 64
    values 15 and 18; 64 of 256 values 20 and 35."""
    norm_few_runs: int = _number(256, "runs", "of a whole batch, up to which short ones are summed one by one, too")
    """Forward and backward, by rows and by runs: 128 runs of 16 values 48 + 44, 29 + 27 us; 256 runs of 4 48 + 44, 29 +
    27; 256 runs of 16 29 + 29, 34 + 32; 512 runs of 16 32 + 31, 42 + 38."""
    norm_long_run: int = _number(1024, "values", "length from which runs are multiplied one by one")
    """From this length of the runs of a channel on, NumPy multiplies by a number fastest run by run; shorter ones by a
    row in which the number is repeated. Forward and backward run by run and by rows: 8x64x16x16 133 + 182, 105 + 148
    us; 8x32x20x20 114 + 160, 89 + 130; 8x16x32x32 90 + 132, 98 + 148."""
    norm_repeated: int = _number(16_384, "values", "of a batch, from which rows of a repeated number pay")
    """By such rows and run by run, forward and backward: 8x16x8x8 29 + 29, 29 + 27 us; 8x32x8x8 34 + 35, 36 + 36;
    8x32x16x16 51 + 59, 63 + 75."""
    norm_row: int = _number(512, "values", "in a row of short runs, at least")
    """From this length on, NumPy's operations on rows are fast. Not measured separately."""
    norm_piece: int = _number(1024, "values", "of a run that are added in float32")
    """16 sums of 8,192 normal values in pieces of 128, 512, 1,024, 2,048, 4,096 values: 8.4, 5.8, 6.1, 4.5, 5.4 us;
    errors 1.5, 1.5, 1.5, 2.5, 4.0 times 1e-5."""
    norm_rows: int = _number(64, "rows", "that are added in float32")
    """So few that their sum is as exact as that of a piece. Not measured separately."""
    norm_neighbours: int = _number(256, "values", "that are adjacent in memory, in one block")
    """In channels_last memory, 64, 128 and 256 together, forward and backward: 8x96x32x32 1500 + 1984, 554 + 674, 523 +
    661 us; 8x144x16x16 664 + 855, 544 + 685, 232 + 283."""
    norm_threads_bytes: int = _number(16 * 2**20, "bytes", "inputs from which several threads pay")
    """Small inputs give short calls into NumPy, in which threads wait for each other: 8x64x64x64, forward and backward,
    takes 4.1 and 6.1 ms on two threads, and 3.1 and 5.7 on one."""


TUNING = Tuning()


@contextmanager
def tuned(**numbers: int) -> Iterator[None]:
    """Use other numbers in all threads of the process while inside: for measurements and tests."""
    global TUNING
    before = TUNING
    TUNING = replace(before, **numbers)
    try:
        yield
    finally:
        TUNING = before
