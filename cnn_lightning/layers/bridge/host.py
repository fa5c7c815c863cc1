"""Get the arrays of the tensors, run the operation on them, and make tensors of its results.

On the CPU here; for CUDA with `cuda`; from other devices by copies to the host and back.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnn_lightning.layers.bridge import checks, cuda, layout, listeners, tracers
from cnn_lightning.layers.bridge.checks import Operation, label
from cnn_lightning.layers.bridge.tracers import PLAIN
from cnn_lightning.ops.fast import blocks, chooser
from cnn_lightning.ops.types import Array
from cnn_lightning.processes import are_several


def run(
    op: Operation,
    tensors: Sequence[Tensor | None],
    dtypes: Sequence[torch.dtype],
    mixed: bool,
    options: dict[str, Any],
    arrays: list[Array | None] | None = None,
    heard_by: Sequence[listeners.Listener] = (),
) -> list[Tensor | None]:
    """Run ``op`` on the arrays of the tensors.

    Args:
        op: The operation.
        tensors: Its positional arguments.
        dtypes: Those that its floating results take: one for each, or one for all.
        mixed: Whether floating arguments may differ in dtype.
        options: Its keyword arguments.
        arrays: The arrays of the tensors as `host_arrays` gives them, if it does.
        heard_by: Who is notified of the computation.

    Raises:
        NotImplementedError: As `checks.check`.
        RuntimeError: As `checks.check`; a CUDA graph is being captured.
    """
    if arrays is not None:
        return _tensors(_compute(op, arrays, dtypes, options, True, heard_by), arrays, dtypes, _tensor_of)
    device = checks.check(op, tensors, mixed)
    with _ON_HOST if device.type == "cpu" else _place(op, device) as to_tensor:
        arrays = [None if tensor is None else array_of(tensor, device) for tensor in tensors]
        host = all(array is None or type(array) is np.ndarray for array in arrays)
        return _tensors(_compute(op, arrays, dtypes, options, host, heard_by), arrays, dtypes, to_tensor)


def quick(
    op: Operation,
    tensors: Sequence[Tensor | None],
    like: Tensor | Sequence[Tensor | None] | None,
    mixed: bool,
    into: Tensor | None,
    options: dict[str, Any],
) -> Any:
    """The results of `call` in the most frequent case, and None in any other.

    That is a fast function on plain tensors in the memory of the host, which nobody observes. Its results are new
    arrays in the dtype of the arguments. In a network, the code of a call has left the processor's cache when the next
    call comes: one of ReLU takes 35 us then, and 8 in a loop. Therefore this way is short.
    """
    if tracers.has_dispatch_mode() or torch._C._get_tracing_state() is not None:
        return None
    function = chooser.chosen(op)
    if function is op:
        return None
    arrays = host_arrays(tensors, mixed)
    if arrays is None:
        return None
    if into is not None:
        return _overwritten(function, into, arrays, options)
    results = blocks.quietly(function, *arrays, **options)
    if type(results) is not tuple:
        return _tensor_of(results)
    made = [None if result is None else _tensor_of(result) for result in results]
    if like is None:
        return tuple(made)
    dtypes = result_dtypes(tensors, like) if isinstance(like, Sequence) else (like.dtype,) * len(made)
    return tuple([None if tensor is None else _cast(tensor, dtype) for tensor, dtype in zip(made, dtypes, strict=True)])


def _overwritten(
    function: Operation, into: Tensor, arrays: Sequence[Array | None], options: dict[str, Any]
) -> Tensor | None:
    """``into``, the first argument, in whose memory a fast function with the option ``out`` wrote its result.

    None, and nothing is computed, if it has no such option, or if elements of ``into`` share memory, which torch
    refuses to write.
    """
    array = arrays[0]
    if array is None or "out" not in (function.__kwdefaults__ or ()) or into.is_neg() or 0 in array.strides:
        return None
    blocks.quietly(function, *arrays, out=array, **options)
    return into  # `ctx.mark_dirty` tells autograd of the change


def result_dtypes(
    tensors: Sequence[Tensor | None], like: Tensor | Sequence[Tensor | None] | None
) -> tuple[torch.dtype, ...]:
    """The dtypes that the floating results take, see ``like`` of `call`: one for each, or one for all."""
    if isinstance(like, Tensor):
        return (like.dtype,)
    if like is not None:
        return tuple(torch.float32 if tensor is None else tensor.dtype for tensor in like)
    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point():
            return (tensor.dtype,)
    return (torch.get_default_dtype(),)


def _compute(
    op: Operation,
    arrays: Sequence[Array | None],
    dtypes: Sequence[torch.dtype],
    options: dict[str, Any],
    host: bool,
    heard_by: Sequence[listeners.Listener],
) -> Any:
    """Run the fast function of ``op`` if the chooser gives one, otherwise ``op`` itself."""
    function = chooser.chosen(op) if host else op
    is_fast = chooser.is_fast(function)
    if heard_by:
        function = listeners.reported(function, heard_by, op, arrays, options, dtypes)
    if is_fast:
        return blocks.quietly(function, *arrays, **options)
    needs = options.get("needs")
    if needs is not None and "needs" in inspect.signature(op).parameters:
        needs = None
    if needs is not None:
        options = {name: value for name, value in options.items() if name != "needs"}
    with blocks.one_blas_thread():
        results = function(*arrays, **options)
    if chooser.is_formula(op):
        results = layout.as_torch(op.__name__, results, arrays)
    if needs is not None:
        results = tuple(result if need else None for result, need in zip(results, needs, strict=True))
    return results


def host_arrays(tensors: Sequence[Tensor | None], mixed: bool) -> list[Array | None] | None:
    """Arrays of the tensors in the common case, None in every other.

    The common case: plain dense tensors on the CPU, one floating dtype, and no process group.
    """
    blocks.suggest_num_threads(torch.get_num_threads())
    if are_several():
        return None
    arrays: list[Array | None] = []
    floating = None
    for tensor in tensors:
        if tensor is None:
            arrays.append(None)
            continue
        if type(tensor) not in PLAIN or not tensor.is_cpu or tensor.layout is not torch.strided:
            return None
        if torch._is_functional_tensor(tensor):  # its type is a plain one, but it has no memory of its own
            return None
        dtype = tensor.dtype
        if dtype in _FLOATING:
            if floating is None:
                floating = dtype
            elif dtype is not floating and not mixed:
                return None
        elif dtype not in _WHOLE:
            return None
        arrays.append(tensor.numpy(force=True))
    return arrays if any(array is not None for array in arrays) else None


_FLOATING = {torch.float32, torch.float64}
_WHOLE = {torch.int64, torch.bool, torch.uint8, torch.int32}


def _tensors(
    results: Any, arrays: Sequence[Array | None], dtypes: Sequence[torch.dtype], to_tensor: Callable[[Any], Tensor]
) -> list[Tensor | None]:
    if not isinstance(results, tuple):
        return [_cast(to_tensor(_own(results, arrays)), dtypes[0])]
    kinds = dtypes if len(dtypes) == len(results) else (dtypes[0],) * len(results)
    return [
        None if result is None else _cast(to_tensor(_own(result, arrays)), dtype)
        for result, dtype in zip(results, kinds, strict=True)
    ]


def computes_on_host(device: torch.device) -> bool:
    """Whether operations on its tensors run on the host, where fast functions can replace formulas."""
    return not (device.type == "cuda" and cuda.available())


def array_of(tensor: Tensor, device: torch.device) -> Array:
    """The array of a tensor on ``device``; float32 for bfloat16 and float16."""
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    if not computes_on_host(device):
        cupy_array: Array = cuda.array(tensor)
        return cupy_array
    if device.type == "cpu" and are_several():
        # FSDP frees a parameter's memory between uses; `Tensor.numpy` would forbid that for good.
        shared: Array = np.from_dlpack(tensor.detach().resolve_neg())
        return shared
    return tensor.numpy(force=True)


def _own(result: Array, arrays: Sequence[Array | None]) -> Array:
    """``result``, copied if it shares memory with an argument, has a negative stride or is read-only.

    A tensor that shared memory with an argument would change with it, and autograd would not notice.
    """
    if type(result) is np.ndarray and _is_new(result):
        return result
    if hasattr(result, "strides") and (
        not getattr(result.flags, "writeable", True)  # CuPy's arrays always are
        or any(stride < 0 for stride in result.strides)
        or any(isinstance(result, type(array)) and np.may_share_memory(result, array) for array in arrays)
    ):
        return result.copy(order="K")
    return result


def _is_new(result: Array) -> bool:
    """Whether its memory is NumPy's own or recycled, so that it is no argument's; a quick answer to most results."""
    source: object = result.base
    while isinstance(source, np.ndarray):
        source = source.base
    is_own = source is None or isinstance(source, memoryview)
    return is_own and result.flags.writeable and min(result.strides, default=0) >= 0


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype != dtype and tensor.is_floating_point() else tensor


def _tensor_of(result: Any) -> Tensor:
    return torch.from_numpy(result) if type(result) is np.ndarray else torch.as_tensor(result)


_ON_HOST = nullcontext(_tensor_of)


@contextmanager
def _place(op: Operation, device: torch.device) -> Iterator[Callable[[Any], Tensor]]:
    """Enter the context for an operation on ``device``, which is not the CPU; yield what makes tensors of its results.

    Raises:
        RuntimeError: A CUDA graph is being captured.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{label(op)}: expected no CUDA graph to be captured: NumPy layers choose memory and kernels anew at each "
            "call, which a graph would not repeat (torch.compile leaves them out of its graphs by itself)"
        )
    if not computes_on_host(device):
        with cuda.current(device):
            yield lambda result: cuda.tensor(result, label(op))
    else:
        _notice(op, device)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield lambda result: torch.as_tensor(result).to(device)


_noticed = False


def _notice(op: Operation, device: torch.device) -> None:
    """Warn once per process that every call copies to the host and back, and name the remedy."""
    global _noticed
    if _noticed:
        return
    _noticed = True
    remedy = (
        "pip install 'cnn-lightning[cuda13]' (or [cuda12]) runs the same NumPy code on the GPU"
        if device.type == "cuda"
        else "layers='torch' runs natively there"
    )
    warnings.warn(
        f"{label(op)}: the NumPy layers run on the host; tensors on {device} are copied there and back at every call "
        f"({remedy})",
        stacklevel=2,
    )
