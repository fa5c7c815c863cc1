"""The opaque operator that stands for a call in the programs of tracers.

Dynamo would trace NumPy calls into torch's own operators, which are not NumPy and are slower. Any other tracer would
record no operator, and take the results for constants. Therefore `call` puts one operator into their graphs, with the
import path of the operation and its options as text. The operator runs the operation as an eager call does.
"""

import importlib
import json
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, library

from cnn_lightning.layers.bridge import host, listeners, tracers
from cnn_lightning.layers.bridge.checks import Operation, argument

_functions: dict[str, Operation] = {}
"""Operations by their name in a graph: some can't be imported by it, for example those defined in a function."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def name_of(op: Operation) -> str:
    """Import path of the operation, as the operator takes it."""
    name = f"{op.__module__}:{op.__qualname__}"
    _functions[name] = op
    return name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def encode(dtypes: Sequence[torch.dtype], mixed: bool, options: dict[str, Any]) -> str:
    """Text of what the operator takes beside name and tensors."""
    return json.dumps({"dtypes": [str(dtype)[len("torch.") :] for dtype in dtypes], "mixed": mixed, "options": options})


def _decode(text: str) -> tuple[tuple[torch.dtype, ...], bool, dict[str, Any]]:
    given = json.loads(text)
    options = {key: _tuples(value) for key, value in given["options"].items()}
    return tuple(getattr(torch, name) for name in given["dtypes"]), given["mixed"], options


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _find(name: str) -> Operation:
    module_name, _, path = name.partition(":")
    value: Any = sys.modules.get(module_name)
    if value is None and module_name not in sys.builtin_module_names:
        value = importlib.import_module(module_name)
    for attribute in path.split("."):
        value = getattr(value, attribute, None)
    return value if value is not None else _functions[name]


def operator(
    op: Operation,
    tensors: Sequence[Tensor | None],
    dtypes: Sequence[torch.dtype],
    mixed: bool,
    options: dict[str, Any],
) -> list[Tensor | None]:
    """The results of `host.run` for these arguments, through the one operator that tracers see."""
    if torch.compiler.is_compiling():
        results = torch.ops.cnn_lightning.call(name_of(op), list(tensors), encode(dtypes, mixed, options))
    else:
        try:
            results = torch.ops.cnn_lightning.call(name_of(op), list(tensors), encode(dtypes, mixed, options))
        except (NotImplementedError, TypeError) as error:
            wrapped = (tensor is not None and tracers.has_own_dispatch(tensor) for tensor in tensors)
            odd = next((index for index, is_wrapped in enumerate(wrapped) if is_wrapped), None)
            if odd is None or "cnn_lightning" not in str(error):
                raise
            raise NotImplementedError(
                f"{argument(op, odd)}: expected a plain tensor, got {type(tensors[odd]).__name__}, which doesn't know "
                "the operator of NumPy layers; swap_layers(net, 'torch') first"
            ) from error
    needs = options.get("needs", (True,) * len(results))
    return [result if need else None for result, need in zip(results, needs, strict=True)]


@library.custom_op(
    "cnn_lightning::call",
    mutates_args=(),
    schema="(str op, Tensor?[] tensors, str options) -> Tensor[]",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _call(op: str, tensors: Sequence[Tensor | None], options: str) -> list[Tensor]:
    function, heard_by = _find(op), listeners.current
    try:
        listeners.begin(heard_by, function, tensors)
        results = host.run(function, tensors, *_decode(options), heard_by=heard_by)
    finally:
        listeners.end(heard_by, function)
    device = next(tensor.device for tensor in tensors if tensor is not None)
    return [torch.empty(0, device=device) if result is None else result for result in results]


@_call.register_fake
def _shapes(op: str, tensors: Sequence[Tensor | None], options: str) -> list[Tensor]:
    """Shapes, strides and dtypes of the results, taken from a run of the operation on zeros.

    If the number of samples N is a symbol, runs with a few numbers show how each size depends on N.
    """
    device = next(tensor.device for tensor in tensors if tensor is not None)
    function, batch = _find(op), _batch(tensors)
    tracers.refuse_onnx(function)
    if batch is not None:
        runs = [_learned(function, options, _layouts(tensors, batch, n)) for n in _TRIED]
        results = [_in_terms_of(batch, layouts) for layouts in zip(*runs, strict=True)]
    if batch is None or None in results:
        results = list(_learned(function, options, _layouts(tensors)))
    return [torch.empty_strided(*sizes, dtype=dtype, device=device) for *sizes, dtype in results]


_TRIED = (2, 3, 5)
_Layout = tuple[tuple[Any, ...], tuple[Any, ...], torch.dtype]
"""Shape, strides, dtype."""


@lru_cache(4096)
def _learned(op: Operation, options: str, layouts: tuple[_Layout | None, ...]) -> tuple[_Layout, ...]:
    """Layouts of the results for arguments in these layouts; a result that is None has that of an empty tensor."""
    with torch.utils._python_dispatch._disable_current_modes():
        zeros = [None if layout is None else _zeros(*layout) for layout in layouts]
        results = host.run(op, zeros, *_decode(options))
        tensors = [torch.empty(0) if result is None else result for result in results]
        return tuple((tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in tensors)


def _zeros(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in this layout, in which elements may share memory."""
    extent = 1 + sum(max(0, n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    return torch.zeros(extent, dtype=dtype).as_strided(shape, strides)


def _batch(tensors: Sequence[Tensor | None]) -> Any:
    """The symbol that is the first size of a tensor and occurs in no other size; None if there is none.

    Every other symbol is fixed to its present number: ``int()`` makes the tracer guard it.
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
    """Layouts of the arguments in numbers, with ``n`` for ``batch``."""

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


def _in_terms_of(batch: Any, layouts: Sequence[_Layout]) -> Any:
    """Layout of one result for any batch, from that for each N of `_TRIED`; None if a size is not linear in N."""

    def line(at_2: int, at_3: int, at_5: int) -> Any:
        slope = at_3 - at_2
        if at_5 - at_3 != 2 * slope:
            raise ValueError
        return at_2 if not slope else slope * batch + (at_2 - 2 * slope)

    shapes, strides, dtypes = zip(*layouts, strict=True)
    try:
        return (
            tuple(line(*sizes) for sizes in zip(*shapes, strict=True)),
            tuple(line(*sizes) for sizes in zip(*strides, strict=True)),
            dtypes[0],
        )
    except ValueError:
        return None
