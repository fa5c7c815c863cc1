"""Threads change only the time, BLAS settings are restored, and memory is recycled only when no array refers to it."""

import gc
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from cnn_lightning.ops.fast import activation, blocks, conv, fused, norm


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = blocks.get_num_threads()
    yield
    blocks.set_num_threads(before)


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def everything(n: int) -> list[np.ndarray]:
    """Operations of every kind, forward and backward, large enough for several blocks and threads."""
    blocks.set_num_threads(n)
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((70, 8, 30, 30), (16, 8, 3, 3), (16,)))
    y = conv.conv2d(x, w, b, padding=1)
    gradients = conv.conv2d_backward(y, x, w, padding=1)
    few, large = rng.standard_normal((4, 64, 17, 17), dtype=np.float32), rng.standard_normal((64, 64, 3, 3), np.float32)
    apart = conv.conv2d_backward(conv.conv2d(few, large, stride=2), few, large, stride=2)
    pooled, *kept = fused.conv_relu_pool(x, w, b, paddings=[1])
    more = fused.conv_relu_pool_backward(pooled, x, w, b, *kept, paddings=[1], needs=(True, True, True))
    # 67 channels: with an odd number the blocks of one thread and of several are cut at different channels
    images, kernels = rng.standard_normal((8, 67, 89, 89), dtype=np.float32), w[:1, :1].repeat(67, axis=0)
    scale = rng.standard_normal(67, dtype=np.float32)
    normal, *statistics = norm.batch_norm(images, scale, scale)
    passed = norm.batch_norm_backward(normal, images, scale, *statistics)
    active = [activation.relu(images), activation.gelu(images), activation.gelu_backward(normal, images)]
    deep = conv.conv2d(images, kernels, padding=1, groups=67)
    deeper = conv.conv2d_backward(normal, images, kernels, padding=1, groups=67)
    found = (y, *gradients, *apart, pooled, *more, normal, *statistics, *passed, *active, deep, *deeper)
    return [array.copy() for array in found if array is not None]


def test_results_are_bit_equal_for_any_number_of_threads() -> None:
    alone = everything(1)
    for n in (2, 3, 5):
        for a, b in zip(everything(n), alone, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize(("size", "threads"), [(2**12, 1), (2**18, 1), (2**20, 1), (2**22, 2)])
def test_another_thread_is_woken_only_for_large_work(size: int, threads: int) -> None:
    blocks.set_num_threads(2)
    at_work = set()

    def formula(x: np.ndarray, y: np.ndarray) -> None:
        at_work.add(threading.current_thread())
        np.copyto(y, x)
        end = time.monotonic() + (10 if threads > 1 else 0.02)
        while len(at_work) < 2 and time.monotonic() < end:  # for the other thread, on a busy machine too
            time.sleep(0.001)

    activation._blockwise(formula, np.ones((64, size // 64), np.float32))
    assert len(at_work) == threads


def test_the_cut_into_blocks_covers_the_batch_once_whatever_the_threads() -> None:
    for n in (0, 1, 5, 64, 1000):
        parts = blocks.blocks(n, 100_000)
        assert [i for part in parts for i in range(n)[part]] == list(range(n))
    assert blocks.blocks(64, 10) == [slice(0, 64)]


def test_blas_has_one_thread_inside_and_the_users_number_outside() -> None:
    before = blas_threads()
    inside: list[list[int]] = []
    blocks.set_num_threads(2)
    blocks.run(lambda part: inside.append(blas_threads()), [slice(0, 1), slice(1, 2)])
    assert inside == [[1] * len(before)] * 2
    assert blas_threads() == before
    with blocks.one_blas_thread(), blocks.one_blas_thread():
        pass
    assert blas_threads() == before


def test_blas_has_one_thread_inside_whichever_thread_an_operation_is_called_from() -> None:
    before = blas_threads()
    inside: list[list[int]] = []

    def call() -> None:
        blocks.run(lambda part: inside.append(blas_threads()), [slice(0, 1)])

    call()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()
        assert blas_threads() == before
        call()
        assert blas_threads() == before
    assert inside == [[1] * len(before)] * 3


def test_an_error_in_a_block_reaches_the_caller_and_restores_blas() -> None:
    before = blas_threads()
    blocks.set_num_threads(2)

    def fail(part: slice) -> None:
        if part.start:
            raise RuntimeError("in a block")

    with pytest.raises(RuntimeError, match="in a block"):
        blocks.run(fail, [slice(0, 1), slice(1, 2)])
    assert blas_threads() == before


@pytest.mark.parametrize("n", [0, -1])
def test_refuses_no_threads(n: int) -> None:
    with pytest.raises(ValueError, match="n: expected at least 1 thread, got"):
        blocks.set_num_threads(n)


def ask(**environment: str) -> str:
    code = "from cnn_lightning.ops.fast import blocks; print(blocks.get_num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_the_default_is_this_processes_share_of_the_cores() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert ask() == str(cores)
    assert ask(LOCAL_WORLD_SIZE="2") == str(max(1, cores // 2))
    assert ask(CNN_LIGHTNING_NUM_THREADS="3") == "3"
    assert "CNN_LIGHTNING_NUM_THREADS: expected a whole number" in ask(CNN_LIGHTNING_NUM_THREADS="many")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_works_after_a_fork() -> None:
    code = """
import os, numpy as np
from cnn_lightning.ops.fast import blocks, conv
blocks.set_num_threads(2)
x, w = np.ones((64, 8, 30, 30), np.float32), np.ones((16, 8, 3, 3), np.float32)
expected = conv.conv2d(x, w)
pid = os.fork()
if pid == 0:
    os._exit(0 if np.array_equal(conv.conv2d(x, w), expected) else 1)
raise SystemExit(os.waitpid(pid, 0)[1])
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


# ---- memory


SHAPE = (300, 300)
LIKE = np.empty(1, np.float32)


def test_memory_is_recycled_once_no_array_refers_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_recycler", blocks._Recycler())  # it has no other free piece of this size
    first = blocks.empty(SHAPE, like=LIKE)
    address = first.ctypes.data
    del first
    assert blocks.empty(SHAPE, like=LIKE).ctypes.data == address


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array,
        lambda array: array[5:, 3],
        lambda array: torch.from_numpy(array),
        lambda array: torch.from_numpy(array)[3:].view(-1),
        lambda array: memoryview(array),
        lambda array: np.from_dlpack(array),
    ],
    ids=["array", "view", "tensor", "tensor view", "memoryview", "dlpack"],
)
def test_memory_that_somebody_holds_is_never_handed_out(hold: object) -> None:
    assert callable(hold)
    array = blocks.empty(SHAPE, like=LIKE)
    array.fill(7)
    held = hold(array)
    del array
    others = [blocks.empty(SHAPE, like=LIKE) for _ in range(20)]
    for other in others:
        other.fill(1)
    assert float(np.asarray(held).min()) == 7


def test_threads_never_share_an_output() -> None:
    def use(value: int) -> bool:
        arrays = [blocks.empty(SHAPE, like=LIKE) for _ in range(4)]
        for index, array in enumerate(arrays):
            array.fill(value * 10 + index)
        return all((array == value * 10 + index).all() for index, array in enumerate(arrays))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(200)))


def test_layout_of_a_recycled_array_is_that_of_its_model() -> None:
    x = np.empty((4, 64, 32, 32), np.float32).transpose(0, 2, 3, 1)
    assert blocks.empty_like(x).strides == x.strides


def test_resident_memory_stays_flat_over_changing_batch_sizes() -> None:
    w = np.ones((8, 4, 3, 3), np.float32)

    def steps(count: int) -> int:
        rng = np.random.default_rng(0)
        for n in rng.integers(1, 48, count):
            x = np.ones((n, 4, 28, 28), np.float32)
            conv.conv2d_backward(conv.conv2d(x, w, padding=1), x, w, padding=1)
        gc.collect()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    blocks.set_num_threads(1)
    settled = steps(150)
    assert steps(400) - settled < 4 * 1024  # KiB


def test_the_first_operation_takes_no_more_threads_than_torch() -> None:
    program = (
        "import os, torch\n"
        "from cnn_lightning import layers\n"
        "from cnn_lightning.ops.fast import blocks\n"
        "torch.set_num_threads(1)\n"
        "layers.ReLU()(torch.ones(2))\n"
        "assert blocks.get_num_threads() == 1\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CNN_LIGHTNING_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)


def test_torchs_workers_sleep_while_blocks_run() -> None:
    """A worker that spins takes a core from the blocks: the process uses processor time with nothing to do.

    Other work on the machine adds nothing to the processor time of this process.
    """
    x, two = torch.ones(10**6), [slice(0, 1), slice(1, 2)]

    def used() -> float:
        assert x.add(1).sum() == 2 * 10**6, "torch has its workers whenever it asks for them"
        blocks.run(lambda part: None, two)
        start = time.process_time()
        time.sleep(0.01)
        return time.process_time() - start

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    blocks.set_num_threads(2)
    try:
        used()
        if not blocks._blas.pauses:
            pytest.skip("torch's threads here are not OpenMP 5's")
        assert max(used() for _ in range(15)) < 0.002
    finally:
        torch.set_num_threads(before)
