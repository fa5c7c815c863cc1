"""The bridge: what it shares, casts, refuses and says; CuPy's side against a small stand-in of its interface."""

import sys
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, library
from torch.utils.flop_counter import FlopCounterMode

import cnn_lightning
from cnn_lightning.layers import bridge
from cnn_lightning.layers.bridge import checks, host, listeners
from cnn_lightning.layers.bridge import compile as compiler
from cnn_lightning.layers.bridge import cuda as on_cuda
from cnn_lightning.ops import linear, pool
from cnn_lightning.ops.fast import pool as fast_pool


def double(x: np.ndarray) -> np.ndarray:
    return x + x


def double_backward(grad_y: np.ndarray, *, needs: tuple[bool, ...] = (True,)) -> Any:
    return (grad_y + grad_y, None) if len(needs) == 2 else grad_y + grad_y


def add(x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return x.copy() if bias is None else x + bias


def reversed_view(x: np.ndarray) -> np.ndarray:
    return x[::-1]


def total(x: np.ndarray) -> Any:
    return x.sum()


@pytest.fixture(autouse=True)
def _no_graph() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_a_cpu_tensor_is_shared_not_copied() -> None:
    x = torch.arange(3.0)
    seen: list[np.ndarray] = []

    def keep(array: np.ndarray) -> np.ndarray:
        seen.append(array)
        return array.copy()

    bridge.call(keep, x)
    assert seen[0].ctypes.data == x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_results_take_the_dtype_of_the_first_floating_tensor(dtype: torch.dtype) -> None:
    assert bridge.call(double, torch.ones(2, dtype=dtype)).dtype == dtype


def test_like_says_whose_dtype_each_result_takes() -> None:
    grad = torch.ones(2, dtype=torch.bfloat16)
    weight = torch.ones(2)
    result, none = bridge.call(double_backward, grad, needs=(True, False), like=(weight, weight))
    assert result.dtype == torch.float32
    assert none is None


def test_a_result_never_shares_memory_with_an_argument() -> None:
    x = torch.arange(4.0)
    y = bridge.call(reversed_view, x)
    x.zero_()
    assert y.tolist() == [3, 2, 1, 0]


def test_a_numpy_scalar_becomes_a_tensor() -> None:
    assert bridge.call(total, torch.ones(3)).shape == ()


def test_conjugate_and_negative_bits_and_views_are_read_rightly() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert torch.equal(bridge.call(double, x.T), 2 * x.T)
    assert torch.equal(bridge.call(double, torch._neg_view(x)), -2 * x)


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ((torch.ones(2), torch.ones(2, dtype=torch.float64)), "add: bias: expected the dtype"),
        ((torch.ones(2, dtype=torch.complex64), None), "add: x: expected a real dtype"),
        ((None, None), "add: expected at least one tensor"),
    ],
)
def test_refuses_in_one_line(tensors: tuple[Tensor | None, ...], line: str) -> None:
    with pytest.raises(RuntimeError, match=line) as error:
        bridge.call(add, *tensors)
    assert "\n" not in str(error.value)


def test_refuses_double_backward() -> None:
    with torch.enable_grad(), pytest.raises(RuntimeError, match="double backward"):
        bridge.call(double, torch.ones(2))


@pytest.mark.parametrize("policy", ["lower", "float32"])
def test_autocast_casts_as_torch_does(policy: Any) -> None:
    x, wide = torch.ones(2), torch.ones(2, dtype=torch.float64)
    assert bridge.autocast(policy, x) is x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, kept, none = bridge.autocast(policy, x, wide, None)
    assert cast.dtype == (torch.bfloat16 if policy == "lower" else torch.float32)
    assert kept is wide
    assert none is None


def test_the_operator_passes_torchs_own_check() -> None:
    dtypes = (torch.float32,)
    name = compiler.name_of(double)
    library.opcheck(torch.ops.cnn_lightning.call, (name, [torch.randn(3, 2)], compiler.encode(dtypes, False, {})))


def test_meta_tensors_learn_shapes_without_data() -> None:
    assert bridge.call(double, torch.ones(5, 2, device="meta")).shape == (5, 2)


# ---- listeners


class Log(bridge.Listener):
    """Each notice as (listener, method, operation), in a list that listeners may have in common."""

    def __init__(self, name: str = "a", notices: list[tuple[str, str, str]] | None = None) -> None:
        self.name, self.notices = name, [] if notices is None else notices
        self.functions: list[Any] = []
        self.results: list[Any] = []

    def _note(self, method: str, op: Any) -> None:
        self.notices.append((self.name, method, op.__name__))
        self.functions.append(op)

    def begin(self, op: Any, tensors: Any) -> None:
        assert all(tensor is None or isinstance(tensor, Tensor) for tensor in tensors)
        self._note("begin", op)

    def enter(self, op: Any, arrays: Any, options: Any) -> None:
        assert all(array is None or isinstance(array, np.ndarray) for array in arrays)
        self._note("enter", op)
        self.entered = arrays

    def leave(self, op: Any, arrays: Any, results: Any, dtypes: Any) -> None:
        assert arrays is self.entered
        assert all(isinstance(dtype, torch.dtype) for dtype in dtypes)
        self._note("leave", op)
        self.results.append(results)

    def end(self, op: Any) -> None:
        self._note("end", op)


METHODS = ["begin", "enter", "leave", "end"]


def test_a_call_is_reported_in_order_with_its_own_operation_arrays_and_results() -> None:
    x = torch.arange(3.0)
    with bridge.watch(Log()) as log:
        y = bridge.call(double, x)
    bridge.call(double, x)
    assert log.notices == [("a", method, "double") for method in METHODS]
    assert set(log.functions) == {double}
    assert log.entered[0].ctypes.data == x.data_ptr()
    assert log.results[0].ctypes.data == y.data_ptr()


def test_nested_listeners_all_hear_and_the_same_one_may_listen_twice() -> None:
    both: list[tuple[str, str, str]] = []
    outer, inner = Log("outer", both), Log("inner", both)
    with bridge.watch(outer):
        with bridge.watch(inner):
            bridge.call(double, torch.ones(2))
        with bridge.watch(outer):
            bridge.call(total, torch.ones(2))
        bridge.call(add, torch.ones(2), None)
        with bridge.watch(inner):
            with bridge.watch(outer):
                pass
            assert listeners.current == (outer, inner)
    order = ["outer", "inner"]
    expected = [(name, method, "double") for method in METHODS[:2] for name in order]
    expected += [(name, method, "double") for method in METHODS[2:] for name in reversed(order)]
    expected += [("outer", method, "total") for method in METHODS for _ in range(2)]
    assert both == expected + [("outer", method, "add") for method in METHODS]
    assert not listeners.current


def test_listeners_may_stop_in_any_order() -> None:
    first, second = Log("first"), Log("second")
    watching, other = bridge.watch(first), bridge.watch(second)
    watching.__enter__()
    other.__enter__()
    watching.__exit__(None, None, None)
    bridge.call(double, torch.ones(2))
    other.__exit__(None, None, None)
    assert first.notices == []
    assert [method for _, method, _ in second.notices] == METHODS


def test_a_call_that_raises_is_ended_for_each_listener() -> None:
    def fail(x: np.ndarray) -> Any:
        raise ZeroDivisionError

    outer, inner = Log("outer"), Log("inner")
    with bridge.watch(outer), bridge.watch(inner):
        with pytest.raises(ZeroDivisionError):
            bridge.call(fail, torch.ones(2))
        with pytest.raises(RuntimeError, match="expected at least one tensor"):
            bridge.call(fail, None)
        bridge.call(double, torch.ones(2))
    for log in (outer, inner):
        assert [method for _, method, _ in log.notices] == ["begin", "enter", "end", "begin", "end", *METHODS]
    assert listeners.current == ()


def test_backward_is_heard_in_whatever_thread_it_runs() -> None:
    with torch.enable_grad(), bridge.watch(Log()) as log:
        y = Double.apply(torch.ones(3, requires_grad=True)).sum()
        backward = threading.Thread(target=y.backward)
        backward.start()
        backward.join()
    names = [(op, method) for op in ("double", "double_backward") for method in METHODS]
    assert [(op, method) for _, method, op in log.notices] == names


@pytest.mark.parametrize("tier", [True, False])
def test_what_is_watched_runs_the_same_function_with_the_same_bits(tier: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    original = fast_pool.max_pool2d
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)

    def counted(*args: Any, **options: Any) -> Any:
        ran.append("fast")
        return original(*args, **options)

    counted.__module__ = original.__module__
    monkeypatch.setattr(fast_pool, "max_pool2d", counted)
    with cnn_lightning.fast(tier):
        alone = bridge.call(pool.max_pool2d, x, kernel_size=2)
        with bridge.watch(Log()) as log:
            watched = bridge.call(pool.max_pool2d, x, kernel_size=2)
    assert torch.equal(alone, watched)
    assert alone.stride() == watched.stride()
    assert ran == ["fast"] * 2 * tier
    assert set(log.functions) == {pool.max_pool2d}


def test_needs_are_reported_and_dropped_for_a_formula_as_without_a_listener() -> None:
    class Options(bridge.Listener):
        def enter(self, op: Any, arrays: Any, options: Any) -> None:
            self.options = options

    given = (torch.ones(1, 2), torch.ones(1, 3), torch.ones(2, 3))
    with cnn_lightning.fast(False), bridge.watch(Options()) as listener:
        grad_x, _, grad_bias = bridge.call(linear.linear_backward, *given, needs=(False, True, False))
    assert grad_x is grad_bias is None
    assert listener.options == {"needs": (False, True, False)}


def test_a_compiled_program_is_heard_when_it_runs_and_not_while_it_is_traced() -> None:
    torch._dynamo.reset()
    net = torch.compile(Double.apply, backend="aot_eager", fullgraph=True)
    x = torch.ones(3, requires_grad=True)
    with torch.enable_grad():
        net(x).sum().backward()
        with bridge.watch(Log()) as log, torch._dynamo.config.patch(error_on_recompile=True):
            net(x).sum().backward()
        compiler._learned.cache_clear()
        torch._dynamo.reset()
        with bridge.watch(Log()) as from_the_start:
            net(x).sum().backward()
    names = [(op, method) for op in ("double", "double_backward") for method in METHODS]
    assert [(op, method) for _, method, op in log.notices] == names
    assert from_the_start.notices == log.notices


def test_under_a_dispatch_mode_a_call_is_heard_once_and_fake_tensors_run_nothing() -> None:
    with bridge.watch(Log()) as log, FlopCounterMode(display=False):
        bridge.call(double, torch.ones(3))
    assert [method for _, method, _ in log.notices] == METHODS
    compiler._learned.cache_clear()
    with bridge.watch(Log()) as log:
        bridge.call(double, torch.ones(5, 2, device="meta"))
    assert [method for _, method, _ in log.notices] == ["begin", "end"]


# ---- devices, without having one


class Elsewhere:
    """A CUDA tensor without a GPU: what the bridge asks a tensor on its way to the host and back."""

    def __init__(self, tensor: Tensor, log: list[str]) -> None:
        self.tensor, self.log = tensor, log
        self.device, self.dtype, self.layout = torch.device("cuda", 1), tensor.dtype, tensor.layout

    def is_floating_point(self) -> bool:
        return self.tensor.is_floating_point()

    def is_complex(self) -> bool:
        return False

    def numpy(self, *, force: bool) -> np.ndarray:
        assert force
        self.log.append("to the host")
        return self.tensor.numpy()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """As much of ``torch.cuda`` as the bridge uses, and a note of what was entered."""
    seen = SimpleNamespace(entered=[], capturing=False, log=[])

    @contextmanager
    def device(device: torch.device) -> Iterator[None]:
        seen.entered.append(f"torch {device}")
        yield
        seen.entered.remove(f"torch {device}")

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: seen.capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"{device} 7")
    return seen


@pytest.fixture
def without_cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(on_cuda, "find_spec", lambda name: None)
    monkeypatch.setattr(host, "_noticed", False)
    on_cuda.available.cache_clear()
    yield
    on_cuda.available.cache_clear()


def test_without_cupy_each_tensor_is_copied_once_each_way_and_said_so_once(
    cuda: SimpleNamespace, without_cupy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "to", lambda tensor, device: cuda.log.append(f"to {device}") or tensor)
    x, bias = (Elsewhere(torch.ones(2), cuda.log) for _ in range(2))

    def run() -> list[Any]:
        return host.run(add, [x, bias], [torch.float32], False, {})  # type: ignore[list-item]

    with pytest.warns(UserWarning, match=r"add: the NumPy layers run on the host; .* cuda:1 .*cnn-lightning\[cuda13\]"):
        (y,) = run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()
    assert y.tolist() == [2, 2]
    assert cuda.log == 2 * ["to the host", "to the host", "to cuda:1"]


def test_on_a_device_without_cuda_the_notice_names_the_native_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_noticed", False)
    with pytest.warns(UserWarning, match="tensors on mps are copied .*layers='torch' runs natively"):
        host._notice(double, torch.device("mps"))


class FakeArray:
    """A CuPy array: memory on a device, NumPy's dispatch, no way to the host."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.strides, self.flags = array, array.strides, SimpleNamespace(c_contiguous=True)

    def __add__(self, other: Any) -> Any:
        return FakeArray(self.array + other.array)

    def __getitem__(self, index: Any) -> Any:
        return FakeArray(self.array[index])

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        assert function is np.may_share_memory
        return function(*(value.array for value in args))

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError("implicit conversion to the host")

    def copy(self, order: Any = "C") -> Any:
        return FakeArray(self.array.copy(order))

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 1)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__()


class FakeCupy(types.ModuleType):
    """Of CuPy's interface what `bridge.cuda` uses; it notes which device, stream and allocator are current."""

    def __init__(self, cuda: SimpleNamespace) -> None:
        super().__init__("cupy")
        self.cuda_state = cuda
        self.converted: list[tuple[str, ...]] = []
        self.threads: list[int] = []
        self.cuda = SimpleNamespace(
            Device=lambda index: self._enter(f"device {index}"),
            Stream=SimpleNamespace(from_external=lambda stream: self._enter(f"stream {stream}")),
            using_allocator=lambda allocator: self._enter("allocator"),
            PythonFunctionAllocator=lambda malloc, free: SimpleNamespace(malloc=(malloc, free)),
        )

    @contextmanager
    def _enter(self, what: str) -> Iterator[None]:
        self.cuda_state.entered.append(what)
        yield
        self.cuda_state.entered.remove(what)

    def is_available(self) -> bool:
        return True

    def from_dlpack(self, tensor: Tensor) -> FakeArray:
        self.converted.append(tuple(self.cuda_state.entered))
        self.threads.append(threading.get_ident())
        return FakeArray(tensor.numpy())


@pytest.fixture
def cupy(cuda: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    fake = FakeCupy(cuda)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(on_cuda, "find_spec", lambda name: name)
    # CPU tensors play CUDA ones: what follows the device is what is under test.
    monkeypatch.setattr(host, "host_arrays", lambda *args: None)
    monkeypatch.setattr(checks, "check", lambda *args: torch.device("cuda", 1))
    monkeypatch.setattr(torch.utils.dlpack, "from_dlpack", lambda array: torch.from_numpy(array.array))
    on_cuda.available.cache_clear()
    on_cuda._allocator.cache_clear()
    yield fake
    on_cuda.available.cache_clear()
    on_cuda._allocator.cache_clear()


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return bridge.call(double, x)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Tensor:
        return bridge.call(double_backward, grad_y)


def test_device_stream_and_allocator_are_entered_forward_and_backward(cupy: FakeCupy) -> None:
    with torch.enable_grad():
        x = torch.ones(3, requires_grad=True)
        y = Double.apply(x).sum()
        # As autograd does with what was computed on a GPU, the backward is on another thread.
        backward = threading.Thread(target=y.backward)
        backward.start()
        backward.join()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2, 2]
    assert cupy.converted == [("torch cuda:1", "device 1", "stream cuda:1 7", "allocator")] * 2
    assert len(set(cupy.threads)) == 2
    assert cupy.cuda_state.entered == []


def test_cupy_arrays_share_the_tensors_memory_both_ways(cupy: FakeCupy) -> None:
    seen: list[np.ndarray] = []

    def keep(array: Any) -> Any:
        seen.append(array.array)
        result = array + array
        seen.append(result.array)
        return result

    x = torch.ones(3)
    y = bridge.call(keep, x)
    assert [array.ctypes.data for array in seen] == [x.data_ptr(), y.data_ptr()]


def test_a_cupy_array_that_is_a_view_of_an_argument_or_backwards_is_copied(cupy: FakeCupy) -> None:
    x = torch.arange(4.0)
    views = bridge.call(lambda array: (array, array[:2], array[::-1], (array + array)[::-1]), x)
    x.zero_()
    assert [view.tolist() for view in views] == [[0, 1, 2, 3], [0, 1], [3, 2, 1, 0], [6, 4, 2, 0]]


@pytest.mark.parametrize("host", [np.zeros(3), np.float32(0), 0.0])
def test_a_result_on_the_host_is_refused_rather_than_copied(cupy: FakeCupy, host: Any) -> None:
    def stray(x: Any) -> Any:
        return host

    with pytest.raises(
        TypeError, match=f"^stray: expected results on the device .* got {type(host).__name__} on"
    ) as error:
        bridge.call(stray, torch.ones(3))
    assert "\n" not in str(error.value)


def test_cupy_takes_its_memory_from_torch_on_the_current_stream(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def allocate(*args: Any) -> int:
        asked.append(args)
        return 99

    monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", allocate)
    monkeypatch.setattr(torch.cuda, "caching_allocator_delete", asked.append)
    malloc, free = on_cuda._allocator()
    assert malloc(64, 1) == 99
    free(99, 1)
    assert asked == [(64, 1, "1 7"), 99]


@pytest.mark.parametrize("installed", [True, False])
def test_a_cuda_graph_is_refused_in_one_line(
    installed: bool, cuda: SimpleNamespace, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("cupy" if installed else "without_cupy")
    cuda.capturing = True
    with pytest.raises(RuntimeError, match=r"^double: expected no CUDA graph to be captured") as error:
        host.run(double, [Elsewhere(torch.ones(2), [])], [torch.float32], False, {})  # type: ignore[list-item]
    assert "\n" not in str(error.value)


def test_the_compilers_cuda_graphs_leave_the_operator_out() -> None:
    assert torch.Tag.cudagraph_unsafe in torch.ops.cnn_lightning.call.default.tags
