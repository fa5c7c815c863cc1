"""Refuse programs of inductor inside of `numpy_ops`: it writes kernels of its own, which NumPy can't replace."""

import functools
import sys
from collections.abc import Callable
from typing import Any

_MESSAGE = (
    "numpy_ops: expected a program whose operators are torch's, got one that inductor compiles to kernels of its own; "
    "compile with backend='aot_eager', or call it outside"
)
_CLASSES = (
    ("torch", "_TorchCompileInductorWrapper"),  # compiles
    ("torch._inductor.output_code", "CompiledFxGraph"),  # runs what was compiled before
)
_watched: set[str] = set()


def watch(is_on: Callable[[], bool]) -> None:
    """Have inductor raise an error where it compiles or runs while ``is_on()``, as far as it is loaded."""
    for module, name in _CLASSES:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and name not in _watched:
            _watched.add(name)
            kind.__call__ = _refusing(kind.__call__, is_on)


def _refusing(call: Callable[..., Any], is_on: Callable[[], bool]) -> Callable[..., Any]:
    @functools.wraps(call)
    def refused(*args: Any, **options: Any) -> Any:
        if is_on():
            raise RuntimeError(_MESSAGE)
        return call(*args, **options)

    return refused
