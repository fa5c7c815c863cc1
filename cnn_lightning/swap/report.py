"""What runs each layer of a network, and why."""

import dis
import itertools
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from cnn_lightning.layers import bridge, catalog, fused
from cnn_lightning.ops.fast import chooser
from cnn_lightning.swap.arithmetic import is_without_arithmetic
from cnn_lightning.swap.based import AsBase
from cnn_lightning.swap.names import Named
from cnn_lightning.swap.native import LAYERS, NATIVE, formula_file, is_ours, layer_base, path_of
from cnn_lightning.swap.observe import Seen
from cnn_lightning.swap.plan import obstacle, reason_native

_FUNCTIONS = tuple(dict.fromkeys(name for entry in catalog.entries().values() for name in entry.functions))


AS_ASKED = "as asked"
NOTHING = "-"
"""The implementation of what computes nothing."""


@dataclass(frozen=True)
class Row:
    """One layer of a network: its dotted name, its type, what runs it, and why where that is torch.

    The implementation is "-" for a layer that computes nothing. A NumPy layer of ours has the file of its formulas, the
    layers with which it may be computed as one, and the base that a network's own class is treated as. ``calls`` are
    functions of torch that its forward calls beside the layers. ``device`` is the type of the device whose arrays are
    computed there by formulas alone; empty for the host.
    """

    name: str
    type: str
    implementation: str
    reason: str = ""
    file: str = ""
    chain: tuple[str, ...] = ()
    base: str = ""
    calls: tuple[str, ...] = ()
    device: str = ""

    @property
    def tier(self) -> str:
        """What stands in for the layer's formulas, or why nothing does; as it is now."""
        if not self.file:
            return ""
        if self.device:
            return f"(formula: on {self.device})"
        why = chooser.why_formula(self.file)
        if why:
            return f"(formula: {why})"
        return f"fast, with {' '.join(self.chain)}" if self.chain and chooser.is_chain("fused") else "fast"

    @property
    def note(self) -> str:
        """The last column of the report."""
        calls = f"its forward calls {', '.join(self.calls)} as a function, not as a layer" if self.calls else ""
        own = ", ".join(filter(None, (self.tier, self.base and f"as {self.base}")))
        return "; ".join(filter(None, (self.reason or own, calls)))


@dataclass(frozen=True)
class SwapReport:
    """What runs each layer after a swap; ``str(report)`` is a table of it."""

    rows: list[Row] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """The layers whose implementation this very swap replaced."""
    difference: float | None = None
    """From `swap_layers` with ``verify``: the outputs' largest difference from torch's, relative to the largest."""

    @property
    def swapped(self) -> list[str]:
        """Names of the layers that do not run natively."""
        return [row.name for row in self.rows if row.implementation not in ("torch", NOTHING)]

    @property
    def native(self) -> list[tuple[str, str]]:
        """Names of what runs natively, each with the reason."""
        return [(row.name, row.note) for row in self.rows if row.implementation == "torch"]

    def on(self, device: torch.device) -> "SwapReport":
        """The report for a network that runs on this device."""
        kind = "" if bridge.computes_on_host(device) else device.type
        return replace(self, rows=[replace(row, device=kind) for row in self.rows])

    def __str__(self) -> str:
        counts = Counter(row.implementation for row in self.rows if row.implementation != NOTHING)
        lines = ["layers: " + ", ".join(f"{count} {name}" for name, count in counts.items())]
        cells = [(row.name or "(the network)", row.type, row.implementation) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row, texts in zip(self.rows, cells, strict=True):
            line = "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True))
            lines.append(f"  {line}  {row.note}".rstrip())
        if self.difference is not None:
            lines.append(f"outputs: equal to torch's within {self.difference:.0e}")
        return "\n".join(lines)


# ---- its rows


def chains_of(found: list[Named]) -> dict[str, tuple[str, ...]]:
    """For each layer that may be computed in a chain, the others of that chain by their own names."""
    others: dict[str, tuple[str, ...]] = {}
    for named in found:
        if isinstance(named.module, fused.Sequential):
            for names in fused.chains(named.module):
                for name in names:
                    full = f"{named.name}.{name}".removeprefix(".")
                    others[full] = tuple(other for other in names if other != name)
    return others


def rows_of(named: Named, asked: bool, chains: Mapping[str, tuple[str, ...]], seen: Seen | None) -> Iterator[Row]:
    """The rows of one module: one for each of its names.

    Args:
        named: The module.
        asked: Whether a pattern matches it.
        chains: From `chains_of`.
        seen: What a run of the network has shown; without it, calls of functions are read in the module's code.
    """
    if named.is_layer:
        yield from (_of_layer(named, name, asked, chains, seen) for name in named.names)
        return
    calls = _functional_calls(named.module) if seen is None else seen.calls.get(named.identity, ())
    if calls:
        yield from (Row(name, path_of(type(named.module)), "torch", calls=tuple(calls)) for name in named.names)


def _of_layer(named: Named, name: str, asked: bool, chains: Mapping[str, tuple[str, ...]], seen: Seen | None) -> Row:
    kind, native = type(named.module), named.native
    calls = () if seen is None else tuple(seen.calls.get(named.identity, ()))
    if is_without_arithmetic(native) and not is_ours(named.module):
        return Row(name, path_of(native), NOTHING, "no arithmetic")
    implementation, why = ("", "") if seen is None else seen.not_called(named)
    if why:
        return Row(name, path_of(native), implementation, why)
    if not is_ours(named.module):
        swappable = native in LAYERS and not obstacle(named.module)
        chosen = AS_ASKED if asked else "no pattern names it"
        return Row(name, path_of(kind), "torch", chosen if swappable else reason_native(named.module), calls=calls)
    file = formula_file(named.module)
    if isinstance(named.module, AsBase):
        base = layer_base(native)
        ran = seen is None or named.identity in seen.computed or (base is not None and file in _SOMETIMES_IDLE)
        if not ran:
            return Row(name, path_of(native), "torch", "no function that it calls has a NumPy layer", calls=calls)
        why = "" if base is not None else "by the functions that it calls"
        return Row(name, path_of(native), "numpy", why, file, base="" if base is None else base.__name__, calls=calls)
    if kind in NATIVE or parametrize.is_parametrized(named.module):
        return Row(name, path_of(native), "numpy", "", file, chains.get(name, ()))
    return Row(name, path_of(native), kind.__name__, calls=calls)


_SOMETIMES_IDLE = ("", "dropout")
"""Files of layers that run no formula in evaluation."""


def _functional_calls(module: nn.Module) -> list[str]:
    """Functions of torch.nn.functional, torch or a tensor that stand in the methods of a module's class."""
    kind = type(module)
    known: dict[Any, str] = {
        getattr(home, name): name for home in (functional, torch, Tensor) for name in _FUNCTIONS if hasattr(home, name)
    }
    layers_of_it = {name.rpartition(".")[2] for name, _ in module.named_modules()}
    calls: dict[str, None] = {}
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        if base.__module__.startswith("torch."):
            continue
        for function in vars(base).values():
            if isinstance(function, types.FunctionType):
                found = (known[called] for called in _called(function, layers_of_it) if called in known)
                calls.update(dict.fromkeys(found))
    return list(calls)


_Callable: TypeAlias = types.FunctionType | types.BuiltinFunctionType | types.MethodDescriptorType
"""What functions of torch are, and methods of tensors; anything else that a name leads to may not even be hashable."""


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the comprehensions and functions inside it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)


def _called(method: types.FunctionType, layers_of_it: set[str]) -> Iterator[Any]:
    """What ``name`` or ``name.name.name`` means in a method where that starts at a global name.

    Also ``x.name``, as a method of tensors, where ``x`` is not the module itself nor ``name`` that of a layer.
    """
    first = method.__code__.co_varnames[:1]
    value: Any = None
    of_the_module = False
    for step in itertools.chain.from_iterable(map(dis.get_instructions, _codes(method.__code__))):
        if step.opname == "LOAD_GLOBAL":
            value, of_the_module = method.__globals__.get(step.argval), False
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            if isinstance(value, types.ModuleType):
                value = _attribute(value, step.argval)
            elif value is None and not of_the_module and step.argval not in layers_of_it:
                of_tensors = getattr(Tensor, step.argval, None)
                if isinstance(of_tensors, _Callable):
                    yield of_tensors
        else:
            loaded = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            value, of_the_module = None, step.opname.startswith("LOAD_") and loaded[-1:] == first
        if isinstance(value, _Callable):
            yield value


def _attribute(module: types.ModuleType, name: str) -> Any:
    """What stands there already: a module that loads its parts when they are asked for is not asked."""
    return vars(module).get(name)
