"""The bridge: what it shares, casts, refuses and says; CuPy's side against a small stand-in of its interface."""

import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cnn_lightning.layers import _cupy, bridge


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
    name = bridge._name(double)
    torch.library.opcheck(torch.ops.cnn_lightning.call, (name, [torch.randn(3, 2)], bridge._encode(dtypes, False, {})))


def test_meta_tensors_learn_shapes_without_data() -> None:
    assert bridge.call(double, torch.ones(5, 2, device="meta")).shape == (5, 2)


# ---- devices, without having one


def test_other_devices_go_by_host_copies_and_one_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "_noticed", False)
    copies: list[torch.device] = []

    @contextmanager
    def counted(op: Any, device: torch.device) -> Iterator[Any]:
        bridge._notice(op, torch.device("mps"))
        yield lambda result: copies.append(device) or torch.as_tensor(result)

    monkeypatch.setattr(bridge, "_place", counted)
    with pytest.warns(UserWarning, match="double: the NumPy layers run on the host; tensors on mps are copied"):
        bridge.call(double, torch.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bridge.call(double, torch.ones(2))
    assert len(copies) == 2


class FakeCupy(types.ModuleType):
    """Of CuPy's interface what `_cupy` uses; it notes which device, stream and allocator are current."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.entered: list[str] = []
        self.converted: list[tuple[str, ...]] = []
        self.cuda = types.SimpleNamespace(
            Device=lambda index: self._enter(f"device {index}"),
            Stream=types.SimpleNamespace(from_external=lambda stream: self._enter(f"stream {stream}")),
            using_allocator=lambda allocator: self._enter("allocator"),
            PythonFunctionAllocator=lambda malloc, free: types.SimpleNamespace(malloc=(malloc, free)),
        )

    @contextmanager
    def _enter(self, what: str) -> Iterator[None]:
        self.entered.append(what)
        yield
        self.entered.remove(what)

    def is_available(self) -> bool:
        return True

    def from_dlpack(self, tensor: Tensor) -> np.ndarray:
        self.converted.append(tuple(self.entered))
        return tensor.numpy()


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(_cupy, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: 7)
    # CPU tensors play CUDA ones: what follows the device is what is under test.
    monkeypatch.setattr(bridge, "_check", lambda *args: torch.device("cuda", 1))
    _cupy.available.cache_clear()
    _cupy._allocator.cache_clear()
    yield fake
    _cupy.available.cache_clear()
    _cupy._allocator.cache_clear()


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
        Double.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2, 2]
    assert cupy.converted == [("device 1", "stream 7", "allocator")] * 2
    assert cupy.entered == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_a_gpu_nothing_is_copied_and_nothing_waits() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    x = torch.arange(3.0, device="cuda")
    seen: list[Any] = []

    def keep(array: Any) -> Any:
        seen.append(array)
        return array + array

    torch.cuda.set_sync_debug_mode("error")
    try:
        y = bridge.call(keep, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(seen[0], cupy.ndarray)
    assert seen[0].data.ptr == x.data_ptr()
    assert y.is_cuda
