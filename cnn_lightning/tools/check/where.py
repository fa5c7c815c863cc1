"""The place of a fault in the source; and what an operation does to its arrays, which torch can't see."""

import inspect
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, Function

from cnn_lightning.layers import bridge
from cnn_lightning.tools.check.subject import Call, Run, Subject, propagate


def _nodes(outputs: list[Tensor]) -> Iterator[Any]:
    """The nodes of the graph of ``outputs``."""
    todo: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        todo += [following for following, _ in node.next_functions if following is not None]


def _functions(outputs: list[Tensor]) -> list[type[Function]]:
    """The hand-written autograd.Functions in the graph of ``outputs``."""
    nodes = _nodes(outputs)
    found: list[Any] = [node for node in nodes if isinstance(node, BackwardCFunction)]
    return list(dict.fromkeys(node._forward_cls for node in found))


def operators_of(outputs: list[Tensor]) -> list[str]:
    """The names of the backwards in the graph of ``outputs``; none if one of them is hand-written."""
    names = [node.name() for node in _nodes(outputs) if "Accumulate" not in node.name()]
    return [] if _functions(outputs) else list(dict.fromkeys(names))


def source_of(function: Any) -> str:
    """The name of a reference, with file and line."""
    kind: Any = type(function) if isinstance(function, torch.nn.Module) else function
    code = kind.forward if isinstance(function, torch.nn.Module) else kind
    name = getattr(kind, "__qualname__", repr(kind))
    place = _source(code)
    return f"{name} ({place})" if ":" in place else name


def _source(function: Any) -> str:
    try:
        code = inspect.unwrap(function).__code__
    except AttributeError:
        return repr(function)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def backward_of(outputs: list[Tensor]) -> str:
    """The hand-written backwards in the graph of ``outputs``, with file and line."""
    functions = [f"{f.__name__}.backward ({_source(f.backward)})" for f in _functions(outputs)]
    return ", ".join(functions) or f"the graph of the output ({', '.join(operators_of(outputs))})"


def forward_of(subject: Subject) -> str:
    """The module's forward, with file and line."""
    kind = type(subject.module)
    return f"{kind.__name__}.forward ({_source(kind.forward)})"


def line_of(error: BaseException, subject: Subject) -> str:
    """The innermost line that belongs neither to torch nor to `cnn_lightning.tools.check`."""
    homes = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(homes)]
    if own:
        return f"{own[-1].name} ({Path(own[-1].filename).name}:{own[-1].lineno})"
    in_backward = any(frame.name == "_engine_run_backward" for frame in frames)
    return "what a backward returned" if in_backward else f"what {forward_of(subject)} returned"


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = inspect.getattr_static(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


class _Seen(bridge.Listener):
    """What operations do to their arrays that torch can't see or the bridge repairs.

    Attributes:
        wide: The float64 results of float32 arrays, by the place of the operation.
        written: The arguments that were written into, by that place.
        aliased: The arguments that a result shares memory with, by that place.
        called: The places of all calls, in order.
    """

    def __init__(self) -> None:
        self.wide: dict[str, str] = {}
        self.written: dict[str, str] = {}
        self.aliased: dict[str, str] = {}
        self.called: list[str] = []
        self._before: dict[int, list[Any]] = {}

    def enter(self, op: Call, arrays: Sequence[Any], options: dict[str, Any]) -> None:
        self._before[id(arrays)] = [None if array is None else array.copy() for array in arrays]

    def leave(self, op: Call, arrays: Sequence[Any], results: Any, dtypes: Sequence[torch.dtype]) -> None:
        before = self._before.pop(id(arrays))
        _look(self, op, arrays, before, results if isinstance(results, tuple) else (results,), dtypes)


def watched() -> AbstractContextManager[_Seen]:
    """Look at the arrays that go into and come out of every operation called through the bridge."""
    return bridge.watch(_Seen())


def _look(
    seen: _Seen,
    op: Call,
    arrays: Sequence[Any],
    before: Sequence[Any],
    results: Sequence[Any],
    dtypes: Sequence[torch.dtype],
) -> None:
    where = f"{op.__name__} ({_source(op)})"
    seen.called.append(where)
    names = [*inspect.signature(op).parameters, *map(str, range(len(arrays)))]
    floats = [array.dtype.itemsize for array in arrays if array is not None and array.dtype.kind == "f"]
    # What the caller of the bridge asked for in float64 (statistics, say) is no accident.
    floats += [8] if torch.float64 in dtypes else []
    for name, array, old in zip(names, arrays, before, strict=False):
        if array is not None and not np.array_equal(array, old, equal_nan=array.dtype.kind == "f"):
            seen.written[where] = name
    for index, result in enumerate(results):
        if result is None:
            continue
        if np.result_type(result).kind == "f" and floats and np.result_type(result).itemsize > max(floats):
            seen.wide[where] = f"result {index}" if len(results) > 1 else "the result"
        for name, array in zip(names, arrays, strict=False):
            if isinstance(array, np.ndarray) and isinstance(result, np.ndarray) and np.may_share_memory(array, result):
                seen.aliased[where] = name


def raw_gradients(s: Subject, module: torch.nn.Module, inputs: tuple[Any, ...], run: Run) -> dict[str, torch.dtype]:
    """Gradients in float64 as the Functions return them, before autograd casts them to the input's dtype."""
    wide: dict[str, torch.dtype] = {}
    for function in _functions(run.outputs):
        original = function.backward

        def spy(ctx: Any, *upstream: Any, original: Call = original, function: Any = function) -> Any:
            results = original(ctx, *upstream)
            for result in results if isinstance(results, tuple) else (results,):
                if isinstance(result, Tensor) and result.dtype == torch.float64:
                    wide[f"{function.__name__}.backward ({_source(original)})"] = result.dtype
            return results

        with _replaced(function, "backward", staticmethod(spy)):
            propagate(s, module, inputs)
    return wide
