"""Tensors to arrays and back: the one place that knows devices, streams, dtypes and the compiler.

A layer of one's own needs nothing else. Write a forward and a backward on arrays, then::

    class SquareFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return bridge.call(square, x)

        @staticmethod
        def backward(ctx, grad_y):
            (x,) = ctx.saved_tensors
            return bridge.call(square_backward, grad_y, x)

`call` takes the arrays of the tensors, runs the operation on them and returns tensors like those. `autocast` and
`write` do for a layer what ``torch.autocast`` and ``inplace=True`` do for torch's own.

A program that records, replaces or counts torch's operators (a compiler, ``make_fx``, fake tensors, any
``TorchDispatchMode``) sees no NumPy: for it a call is one operator. What records in another way (``torch.jit``,
``torch.fx``, the exporter to ONNX, ``torch.func``) would leave it out, and is refused in one line.
"""

import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from cnn_lightning.layers import layout
from cnn_lightning.layers.bridge import cuda
from cnn_lightning.ops.fast import blocks, chooser
from cnn_lightning.ops.types import Array

Operation = Callable[..., Any]
"""Takes arrays (or None) and keyword options; returns an array, or a tuple of arrays and Nones."""

# ---- the verbs


def call(
    op: Operation,
    *tensors: Tensor | None,
    like: Tensor | Sequence[Tensor | None] | None = None,
    mixed: bool = False,
    **options: Any,
) -> Any:
    """Run ``op`` on the arrays of ``tensors`` and return its results as tensors like those.

    On the CPU the arrays share the tensors' memory; on CUDA they are CuPy arrays on torch's current device and stream
    where CuPy is installed; from any other device they are copied to the host and back. bfloat16 and float16 are
    computed in float32. While ``torch.compile``, ``torch.export`` or ``make_fx`` trace, and under any dispatch mode,
    the same call becomes one opaque operator, so that NumPy is what runs in the traced program too.

    Args:
        op: A function of arrays, referred to through its module (``activation.relu``) so that it can be replaced.
        tensors: Its positional arguments; None stays None.
        like: Whose dtype the floating results take, one for all or one for each; the first floating tensor otherwise.
        mixed: Whether floating arguments may differ in dtype (normalisation with float32 weights under bfloat16).
        options: Keyword arguments of ``op``: numbers, strings, booleans, None, and tuples or lists of those. Where
            there is a ``needs``, one boolean per result, results that are not needed are None.

    Returns:
        A tensor where ``op`` returned an array, otherwise a tuple of tensors and Nones.

    Raises:
        TypeError: An argument that is neither a tensor nor None.
        NotImplementedError: Complex or sparse tensors, and classes of tensors that can't do with unknown operators.
        RuntimeError: Tensors on different devices or (unless ``mixed``) of different floating dtypes; double backward,
            which a hand-written backward has no derivative for; a recorder that would leave NumPy out.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling:
        _refuse_recorders(op)
    as_operator = compiling or _has_dispatch_mode()
    arrays = None if as_operator else _host_arrays(tensors, mixed)
    if arrays is None:
        for index, given in enumerate(tensors):
            if given is not None and not isinstance(given, Tensor):
                raise TypeError(_no_tensor(_argument(op, index), given))
    dtypes = _result_dtypes(tensors, like)
    if torch.is_grad_enabled() and not compiling:
        raise RuntimeError(
            f"{_label(op)}: double backward (create_graph=True) is not available: its gradient is hand-written and has "
            "no derivative of its own; expected a first-order gradient (bridge.call belongs into an autograd.Function)"
        )
    if as_operator or (arrays is None and any(map(_needs_operator, tensors))):
        return _operator(op, tensors, dtypes, mixed, options)
    return _unwrap(_run(op, tensors, dtypes, mixed, options, arrays))


def autocast(policy: Literal["lower", "float32"], *tensors: Tensor | None) -> Any:
    """Cast as ``torch.autocast`` would for a native layer: to its lower precision, or up to float32.

    Call it in ``Module.forward``, before ``Function.apply``, so that gradients flow back through the casts. Outside
    autocast, and for float64, nothing is done. Returns the tensor, or a tuple where several were given.

    Raises:
        TypeError: The first is not a tensor.
    """
    kind = expect_tensor(tensors[0]).device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind) if policy == "lower" else torch.float32
        tensors = tuple(
            tensor.to(dtype)
            if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64
            else tensor
            for tensor in tensors
        )
    return tensors if len(tensors) > 1 else tensors[0]


def expect_tensor(value: Any, name: str = "input") -> Tensor:
    """``value`` itself, for ``Module.forward`` to begin with: one line in place of whatever a list or None would cause.

    Raises:
        TypeError: ``value`` is not a tensor, but for instance the stand-in that ``torch.fx`` records with.
        RuntimeError: A transform of ``torch.func`` or forward-mode differentiation is at work, which hand-written
            gradients know nothing of.
    """
    if not isinstance(value, Tensor):
        raise TypeError(_no_tensor(name, value))
    expect_no_transform(value, name)
    return value


def expect_no_transform(value: Any, name: str = "input") -> None:
    """`expect_tensor` for a ``Module.forward`` that answers to what is no tensor as its native one does.

    Raises:
        TypeError: ``value`` is the stand-in that ``torch.fx`` records with.
        RuntimeError: As for `expect_tensor`.
    """
    if torch.compiler.is_compiling():
        return
    expect_no_proxy(value, name)
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"{name}: torch.func's transforms (grad, vmap, ...) can't see into NumPy layers; expected none of them "
            "(torch.autograd.grad and functional_call work), or native layers: swap_layers(net, 'torch') first"
        )
    if _is_dual(value):
        raise NotImplementedError(
            f"{name}: NumPy layers have no derivative for forward mode AD; expected a tensor that is not dual, or "
            "native layers: swap_layers(net, 'torch') first"
        )


def expect_no_proxy(value: Any, name: str = "input") -> None:
    """`expect_no_transform` for a layer that may return its input as it is, which any transform sees into.

    Raises:
        TypeError: ``value`` is the stand-in that ``torch.fx`` records with.
    """
    if isinstance(value, torch.fx.Proxy):
        raise TypeError(_no_tensor(name, value))


def is_plain(value: Any) -> bool:
    """Whether ``value`` is a tensor, and nobody traces, transforms or counts what is done with it."""
    return (
        type(value) in _PLAIN
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not _is_dual(value)
        and not _has_dispatch_mode()
        and torch._C._get_tracing_state() is None
    )


def blank(x: Tensor) -> Tensor:
    """Zeros in the shape of ``x`` and the memory of one: to be saved for a backward that asks for the shape alone."""
    return x.new_zeros(()).expand(x.shape)


def write(x: Tensor, y: Tensor) -> Tensor:
    """Put ``y`` into ``x`` and return ``x``: the last line of a forward with ``inplace=True``.

    The Function says ``ctx.mark_dirty(x)`` and saves for backward what it needs after this.
    """
    x.copy_(y)
    return x  # this object itself, which Dynamo looks for


def overwrites(x: Tensor, inplace: bool) -> bool:
    """``inplace``, for ``Module.forward`` to pass on: refused beforehand where autograd would only refuse afterwards.

    Raises:
        TypeError: ``x`` is not a tensor.
        RuntimeError: ``x`` is a leaf that requires a gradient, or a view of one.
    """
    expect_tensor(x)
    if inplace and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        source = x._base if x._is_view() and x._base is not None else x
        if source.is_leaf and (source.requires_grad or x.requires_grad):  # or x is a leaf, and a view of plain numbers
            raise RuntimeError("input: a leaf Variable that requires grad is being used in an in-place operation")
    return inplace


# ---- arrays of tensors, and back again


def _run(
    op: Operation,
    tensors: Sequence[Tensor | None],
    dtypes: Sequence[torch.dtype],
    mixed: bool,
    options: dict[str, Any],
    arrays: list[Array | None] | None = None,
) -> list[Tensor | None]:
    if arrays is not None:
        return _tensors(results(op, arrays, options, host=True), arrays, dtypes, _tensor_of)
    device = _check(op, tensors, mixed)
    with _ON_HOST if device.type == "cpu" else _place(op, device) as to_tensor:
        arrays = [None if tensor is None else _array(tensor, device) for tensor in tensors]
        host = all(array is None or type(array) is np.ndarray for array in arrays)
        return _tensors(results(op, arrays, options, host), arrays, dtypes, to_tensor)


def results(op: Operation, arrays: Sequence[Array | None], options: dict[str, Any], host: bool) -> Any:
    """What the operation gives for these arrays: by its fast function where one stands in for it, or by itself."""
    function = chooser.chosen(op) if host else op
    if chooser.is_fast(function):
        return function(*arrays, **options)
    needs = options.get("needs")
    if needs is not None and "needs" in inspect.signature(op).parameters:
        needs = None
    if needs is not None:
        options = {name: value for name, value in options.items() if name != "needs"}
    with blocks.one_blas_thread():
        results = op(*arrays, **options)
    if chooser.is_formula(op):
        results = layout.as_torch(op.__name__, results, arrays)
    if needs is not None:
        results = tuple(result if need else None for result, need in zip(results, needs, strict=True))
    return results


def _host_arrays(tensors: Sequence[Tensor | None], mixed: bool) -> list[Array | None] | None:
    """The arrays, if all is as it mostly is: plain tensors on the CPU, in this process alone, of one floating dtype."""
    blocks.suggest_num_threads(torch.get_num_threads())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return None
    arrays: list[Array | None] = []
    floating = None
    for tensor in tensors:
        if tensor is None:
            arrays.append(None)
            continue
        if type(tensor) not in _PLAIN or not tensor.is_cpu or tensor.layout is not torch.strided:
            return None
        if torch._is_functional_tensor(tensor):  # a plain one by its type, with no memory of its own
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


_PLAIN = {Tensor, torch.nn.Parameter}
_FLOATING = {torch.float32, torch.float64}
_WHOLE = {torch.int64, torch.bool, torch.uint8, torch.int32}


def _tensors(
    results: Any, arrays: Sequence[Array | None], dtypes: Sequence[torch.dtype], to_tensor: Callable[[Any], Tensor]
) -> list[Tensor | None]:
    if not isinstance(results, tuple):
        results = (results,)
    kinds = dtypes if len(dtypes) == len(results) else (dtypes[0],) * len(results)
    return [
        None if result is None else _cast(to_tensor(_own(result, arrays)), dtype)
        for result, dtype in zip(results, kinds, strict=True)
    ]


def _array(tensor: Tensor, device: torch.device) -> Array:
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    if device.type == "cuda" and cuda.available():
        cupy_array: Array = cuda.array(tensor)
        return cupy_array
    if device.type == "cpu" and torch.distributed.is_available() and torch.distributed.is_initialized():
        # FSDP takes a parameter's memory away between its uses, which `Tensor.numpy` forbids for good.
        shared: Array = np.from_dlpack(tensor.detach().resolve_neg())
        return shared
    return tensor.numpy(force=True)


def _own(result: Array, arrays: Sequence[Array | None]) -> Array:
    """``result`` in memory of its own: a tensor that aliased an argument would change with it, unseen by autograd."""
    if type(result) is np.ndarray and result.base is None and result.flags.writeable:
        return result
    if hasattr(result, "strides") and (
        not getattr(result.flags, "writeable", True)  # CuPy's arrays always are
        or any(stride < 0 for stride in result.strides)
        or any(isinstance(result, type(array)) and np.may_share_memory(result, array) for array in arrays)
    ):
        return result.copy()
    return result


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype != dtype and tensor.is_floating_point() else tensor


def _tensor_of(result: Any) -> Tensor:
    return torch.from_numpy(result) if type(result) is np.ndarray else torch.as_tensor(result)


_ON_HOST = nullcontext(_tensor_of)


@contextmanager
def _place(op: Operation, device: torch.device) -> Iterator[Callable[[Any], Tensor]]:
    """Where the operation runs if not on the CPU, and how its results become tensors of ``device``."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{_label(op)}: expected no CUDA graph to be captured: NumPy layers choose memory and kernels anew at each "
            "call, which a graph would not repeat (torch.compile leaves them out of its graphs by itself)"
        )
    if device.type == "cuda" and cuda.available():
        with cuda.current(device):
            yield lambda result: cuda.tensor(result, _label(op))
    else:
        _notice(op, device)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield lambda result: torch.as_tensor(result).to(device)


_noticed = False


def _notice(op: Operation, device: torch.device) -> None:
    """Say once per process that every call copies to the host and back, and what would end that."""
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
        f"{_label(op)}: the NumPy layers run on the host; tensors on {device} are copied there and back at every call "
        f"({remedy})",
        stacklevel=2,
    )


# ---- the checks


def _check(op: Operation, tensors: Sequence[Tensor | None], mixed: bool) -> torch.device:
    """The device of all tensors; one line that names the odd one out otherwise."""
    first: Tensor | None = None
    floating: Tensor | None = None
    for index, tensor in enumerate(tensors):
        if tensor is None:
            continue
        if tensor.layout != torch.strided:
            raise NotImplementedError(f"{_argument(op, index)}: expected a dense tensor, got {tensor.layout}")
        if first is None:
            first = tensor
        elif tensor.device != first.device:
            raise RuntimeError(
                f"{_argument(op, index)}: expected the device of the others, {first.device}, got {tensor.device}"
            )
        if tensor.is_floating_point():
            if floating is None:
                floating = tensor
            elif tensor.dtype != floating.dtype and not mixed:
                raise RuntimeError(
                    f"{_argument(op, index)}: expected the dtype of the others, {floating.dtype}, got {tensor.dtype}"
                )
        elif tensor.is_complex():
            raise NotImplementedError(f"{_argument(op, index)}: expected a real dtype, got {tensor.dtype}")
    if first is None:
        raise RuntimeError(f"{_label(op)}: expected at least one tensor, got none")
    return first.device


def _label(op: Operation) -> str:
    return getattr(op, "__name__", type(op).__name__)


def _argument(op: Operation, index: int) -> str:
    names = list(inspect.signature(op).parameters)
    return f"{_label(op)}: {names[index] if index < len(names) else f'argument {index}'}"


def _no_tensor(name: str, value: Any) -> str:
    if isinstance(value, torch.fx.Proxy):
        return (
            f"{name}: torch.fx can't see into NumPy layers; expected native ones while it traces: swap_layers(net, "
            "'torch') first, and swap_layers(traced, 'numpy') afterwards"
        )
    return f"{name}: expected a tensor, got {type(value).__name__}"


def _refuse_recorders(op: Operation) -> None:
    """Refuse what records other operators than ours: in its program the results would be constants."""
    if torch._C._get_tracing_state() is None:
        return
    _refuse_onnx(op)
    raise RuntimeError(
        f"{_label(op)}: torch.jit.trace can't record NumPy layers; expected native ones: swap_layers(net, 'torch') "
        "first, or torch.export, which keeps NumPy"
    )


def _refuse_onnx(op: Operation) -> None:
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            f"{_label(op)}: ONNX has no NumPy layers; expected native ones: swap_layers(net, 'torch') first, as "
            "cnn-lightning export does"
        )


def _result_dtypes(
    tensors: Sequence[Tensor | None], like: Tensor | Sequence[Tensor | None] | None
) -> tuple[torch.dtype, ...]:
    if isinstance(like, Tensor):
        return (like.dtype,)
    if like is not None:
        return tuple(torch.float32 if tensor is None else tensor.dtype for tensor in like)
    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point():
            return (tensor.dtype,)
    return (torch.get_default_dtype(),)


def _unwrap(results: list[Tensor | None]) -> Any:
    return results[0] if len(results) == 1 else tuple(results)


# ---- for who looks at operators: one operator
#
# Dynamo would trace NumPy calls into torch's own (no longer NumPy, and slower), and any other tracer would see nothing
# and take the results for constants. Hence `call` leaves one operator in their graphs, with the operation's import path
# and its options as text. What it names runs as it does eagerly.

_functions: dict[str, Operation] = {}
"""Operations that can't be imported by name (defined in a function, say), by the name that stands in the graph."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _name(op: Operation) -> str:
    name = f"{op.__module__}:{op.__qualname__}"
    _functions[name] = op
    return name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _encode(dtypes: Sequence[torch.dtype], mixed: bool, options: dict[str, Any]) -> str:
    return json.dumps({"dtypes": [str(dtype)[len("torch.") :] for dtype in dtypes], "mixed": mixed, "options": options})


def _decode(text: str) -> tuple[tuple[torch.dtype, ...], bool, dict[str, Any]]:
    found = json.loads(text)
    options = {key: _tuples(value) for key, value in found["options"].items()}
    return tuple(getattr(torch, name) for name in found["dtypes"]), found["mixed"], options


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _find(name: str) -> Operation:
    module_name, _, path = name.partition(":")
    found: Any = sys.modules.get(module_name)
    if found is None and module_name not in sys.builtin_module_names:
        found = importlib.import_module(module_name)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if found is not None else _functions[name]


def _needs_operator(tensor: Tensor | None) -> bool:
    """Whether it has no data (the meta device), or a class or wrapper that sees every operator (FakeTensor, ...)."""
    return tensor is not None and (
        tensor.is_meta or _is_class_of_its_own(tensor) or torch._is_functional_tensor(tensor)
    )


def _is_class_of_its_own(tensor: Tensor) -> bool:
    return type(tensor).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def _has_dispatch_mode() -> bool:
    """Whether somebody sees every operator: before autograd does, or after."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._dispatch_tls_is_dispatch_key_included(_BEFORE_AUTOGRAD)


_BEFORE_AUTOGRAD = torch._C.DispatchKey.PreDispatch
"""Named by a string, it would take 2 us to look up."""


def _is_dual(value: Any) -> bool:
    """Whether it carries a tangent for forward-mode differentiation."""
    return (
        forward_ad._current_level >= 0
        and isinstance(value, Tensor)
        and forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]
    )


def _operator(
    op: Operation,
    tensors: Sequence[Tensor | None],
    dtypes: Sequence[torch.dtype],
    mixed: bool,
    options: dict[str, Any],
) -> Any:
    if torch.compiler.is_compiling():
        results = torch.ops.cnn_lightning.call(_name(op), list(tensors), _encode(dtypes, mixed, options))
    else:
        try:
            results = torch.ops.cnn_lightning.call(_name(op), list(tensors), _encode(dtypes, mixed, options))
        except (NotImplementedError, TypeError) as error:
            odd = next(
                (index for index, each in enumerate(tensors) if each is not None and _is_class_of_its_own(each)), None
            )
            if odd is None or "cnn_lightning" not in str(error):
                raise
            raise NotImplementedError(
                f"{_argument(op, odd)}: expected a plain tensor, got {type(tensors[odd]).__name__}, which doesn't know "
                "the operator of NumPy layers; swap_layers(net, 'torch') first"
            ) from error
    needs = options.get("needs", (True,) * len(results))
    return _unwrap([result if need else None for result, need in zip(results, needs, strict=True)])


@torch.library.custom_op(
    "cnn_lightning::call",
    mutates_args=(),
    schema="(str op, Tensor?[] tensors, str options) -> Tensor[]",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _call(op: str, tensors: Sequence[Tensor | None], options: str) -> list[Tensor]:
    results = _run(_find(op), tensors, *_decode(options))
    device = next(tensor.device for tensor in tensors if tensor is not None)
    return [torch.empty(0, device=device) if result is None else result for result in results]


@_call.register_fake
def _shapes(op: str, tensors: Sequence[Tensor | None], options: str) -> list[Tensor]:
    """Shapes, strides and dtypes of the results: learned by running the operation on zeros.

    Where the number of samples N is a symbol, zeros of a few N tell how each size depends on it.
    """
    device = next(tensor.device for tensor in tensors if tensor is not None)
    function, batch = _find(op), _batch(tensors)
    _refuse_onnx(function)
    if batch is not None:
        found = [_learned(function, options, _layouts(tensors, batch, n)) for n in _TRIED]
        results = [_in_terms_of(batch, sizes) for sizes in zip(*found, strict=True)]
    if batch is None or None in results:
        results = list(_learned(function, options, _layouts(tensors)))
    return [torch.empty_strided(*sizes, dtype=dtype, device=device) for *sizes, dtype in results]


_TRIED = (2, 3, 5)
_Layout = tuple[tuple[Any, ...], tuple[Any, ...], torch.dtype]
"""Shape, strides, dtype."""


@lru_cache(4096)
def _learned(op: Operation, options: str, layouts: tuple[_Layout | None, ...]) -> tuple[_Layout, ...]:
    """The layouts of the results for arguments of these; those of an empty tensor for None."""
    with torch.utils._python_dispatch._disable_current_modes():
        zeros = [None if layout is None else _zeros(*layout) for layout in layouts]
        results = _run(op, zeros, *_decode(options))
        found = [torch.empty(0) if result is None else result for result in results]
        return tuple((tuple(result.shape), result.stride(), result.dtype) for result in found)


def _zeros(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """In this layout, in which pixels may share memory."""
    extent = 1 + sum(max(0, n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    return torch.zeros(extent, dtype=dtype).as_strided(shape, strides)


def _batch(tensors: Sequence[Tensor | None]) -> Any:
    """The symbol that is a tensor's first size, and in no other size of any; None where there is no such one.

    Every other symbol is fixed at its number here.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    firsts = [tensor.shape[0] for tensor in given if tensor.dim()]
    batch: Any = next((size for size in firsts if isinstance(size, torch.SymInt)), None)
    if batch is None or not batch.node.expr.is_symbol:
        return None
    (name,) = _symbols(batch)
    others = [size for size in firsts if str(size) != name] + [size for tensor in given for size in tensor.shape[1:]]
    if any(name in _symbols(size) for size in others):
        return None
    for size in others:
        int(size)
    strides = [stride for tensor in given for stride in tensor.stride()]
    return batch if set().union(*map(_symbols, strides)) <= {name} else None


def _symbols(size: Any) -> set[str]:
    return set(map(str, size.node.expr.free_symbols)) if isinstance(size, torch.SymInt) else set()


def _layouts(tensors: Sequence[Tensor | None], batch: Any = None, n: int = 0) -> tuple[_Layout | None, ...]:
    """The arguments' layouts in numbers, with ``n`` for ``batch``."""

    def number(size: Any) -> int:
        if batch is None or isinstance(size, int):
            return int(size)
        return int(size.node.expr.subs(batch.node.expr, n))

    return tuple(
        None
        if tensor is None
        else (tuple(map(number, tensor.shape)), tuple(map(number, tensor.stride())), tensor.dtype)
        for tensor in tensors
    )


def _in_terms_of(batch: Any, found: Sequence[_Layout]) -> Any:
    """One result's layout for any batch, from those for each N of `_TRIED`; None where no line goes through them."""

    def line(at_2: int, at_3: int, at_5: int) -> Any:
        slope = at_3 - at_2
        if at_5 - at_3 != 2 * slope:
            raise ValueError
        return at_2 if not slope else slope * batch + (at_2 - 2 * slope)

    shapes, strides, dtypes = zip(*found, strict=True)
    try:
        return (
            tuple(line(*sizes) for sizes in zip(*shapes, strict=True)),
            tuple(line(*sizes) for sizes in zip(*strides, strict=True)),
            dtypes[0],
        )
    except ValueError:
        return None
