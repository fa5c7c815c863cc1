"""Which implementation runs which layer of a network.

A layer of `cnn_lightning.layers` adds computation to the native class and no state, so a swap is a change of the
object's class: parameters, optimizers, tied weights, hooks, training mode and names stay what they were.
"""

import difflib
import dis
import fnmatch
import importlib
import itertools
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from cnn_lightning.layers import catalog, fused
from cnn_lightning.ops.fast import chooser

Implementation: TypeAlias = str | type[nn.Module]
Spec: TypeAlias = str | Mapping[Any, Any]

LAYERS: dict[type[nn.Module], type[nn.Module]] = {native: entry.layer for native, entry in catalog.entries().items()}
"""The native type of a layer -> ours."""

_NATIVE: dict[type[nn.Module], type[nn.Module]] = {ours: native for native, ours in LAYERS.items()}
_NATIVE[fused.Sequential] = nn.Sequential  # no layer, but a container that computes NumPy layers in chains
_REMEMBERED = "_swapped_from"
"""The attribute in which a layer of a user's own class keeps its native type, for the way back."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_INNER = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
"""Parts of a dotted name that torch.compile and friends put in; patterns match with and without them."""

_FUNCTIONS = tuple(dict.fromkeys(name for entry in catalog.entries().values() for name in entry.functions))


@dataclass(frozen=True)
class Row:
    """One layer of a network: its dotted name, its native type, what runs it, and why where that is torch.

    A NumPy layer of ours has the file of its formulas, and the layers with which it may be computed as one.
    """

    name: str
    type: str
    implementation: str
    reason: str = ""
    file: str = ""
    chain: tuple[str, ...] = ()

    @property
    def tier(self) -> str:
        """What stands in for the layer's formulas on the CPU, or why nothing does; as it is now."""
        if not self.file:
            return ""
        why = chooser.why_formula(self.file)
        if why:
            return f"(formula: {why})"
        return f"fast, with {' '.join(self.chain)}" if self.chain and chooser.is_chain("fused") else "fast"


@dataclass(frozen=True)
class SwapReport:
    """What runs each layer after a swap; ``str(report)`` is a table of it."""

    rows: list[Row] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """The layers whose implementation this very swap replaced."""

    @property
    def swapped(self) -> list[str]:
        """Names of the layers that do not run natively."""
        return [row.name for row in self.rows if row.implementation != "torch"]

    @property
    def native(self) -> list[tuple[str, str]]:
        """Names of what runs natively, each with the reason."""
        return [(row.name, row.reason) for row in self.rows if row.implementation == "torch"]

    def __str__(self) -> str:
        counts = Counter(row.implementation for row in self.rows)
        lines = ["layers: " + ", ".join(f"{count} {name}" for name, count in counts.items())]
        cells = [(row.name or "(the network)", row.type, row.implementation) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row, texts in zip(self.rows, cells, strict=True):
            line = "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True))
            lines.append(f"  {line}  {row.reason or row.tier}".rstrip())
        return "\n".join(lines)


def swap_layers(net: nn.Module, spec: Spec, *, beside: Mapping[str, nn.Module] | None = None) -> SwapReport:
    """Choose the implementation of the layers of ``net``, in place.

    Args:
        net: any network, also one in an optimizer, in DistributedDataParallel, compiled, or swapped before.
        spec: ``"numpy"`` or ``"torch"`` for every layer, or a mapping of patterns to implementations. A pattern is
            matched to dotted names as file names are to ``*.txt`` (`fnmatch`; the first match wins; what none matches
            stays as it is), or it is a native type such as ``torch.nn.ReLU``. An implementation is ``"numpy"``,
            ``"torch"``, a subclass of the layer's native type, or the import path of one.
        beside: modules outside the network that are chosen with it, by name: ``{"loss": CrossEntropyLoss()}``.

    Returns:
        What runs each layer now, and why where that is torch.

    Raises:
        ValueError: an unknown implementation, a pattern that matches no layer or none that can be swapped, or a
            network without a layer to swap.
        TypeError: a class that is no subclass of the native type of a layer it is meant for.

    Nothing has changed when an error is raised.
    """
    found = _modules(net, beside or {})
    choices = _choices(found, spec)
    plan = _plan(found, choices)
    asked = {id(module) for module, _, _ in choices.values()}
    changes: list[_Change] = []
    try:
        _apply(plan, changes)
        of_layers = len(changes)
        _apply([(part, _container(part.module)) for part in found], changes)
        chains = _chains(found)
        rows = [row for part in found for row in _rows(part, part.identity in asked, chains)]
    except BaseException:  # whatever a class of the network's own may raise, or Ctrl-C
        for change in reversed(changes):
            change.undo()
        raise
    changed = {id(change.module) for change in changes[:of_layers]}
    return SwapReport(rows, [part.name for part in found if part.identity in changed])


# ---- the modules of a network


@dataclass(frozen=True)
class _Part:
    """A module under all its names; a module that is used in two places has two."""

    module: nn.Module
    names: tuple[str, ...]
    aliases: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def identity(self) -> int:
        return id(self.module)

    @property
    def native(self) -> type[nn.Module]:
        return native_type(self.module)

    @property
    def is_layer(self) -> bool:
        """Whether it computes something itself, as far as can be told from outside."""
        module = self.module
        if self.native in LAYERS or _REMEMBERED in module.__dict__:
            return True
        if isinstance(module, (*_CONTAINERS, *_WRAPPERS)):
            return False
        leaf = next(module.children(), None) is None or parametrize.is_parametrized(module)
        own = type(module).__module__.startswith("torch.nn.") and bool(module._parameters)
        return leaf or own


def native_type(module: nn.Module) -> type[nn.Module]:
    """The native type that ``module`` has, or had before it was swapped."""
    kind = type(module)
    remembered: type[nn.Module] = module.__dict__.get(_REMEMBERED, kind)
    return _NATIVE.get(kind, remembered)


def _modules(net: nn.Module, beside: Mapping[str, nn.Module]) -> list[_Part]:
    wrapped, prefix = net, ""
    while isinstance(wrapped, (*_WRAPPERS, torch._dynamo.OptimizedModule)):
        inner = "module" if isinstance(wrapped, _WRAPPERS) else "_orig_mod"
        wrapped, prefix = getattr(wrapped, inner), f"{prefix}{inner}."
    modules: dict[int, nn.Module] = {}
    names: dict[int, list[str]] = {}
    aliases: dict[int, list[str]] = {}

    def add(module: nn.Module, name: str, full: str) -> None:
        modules[id(module)] = module
        short = ".".join(part for part in name.split(".") if part not in _INNER)
        names.setdefault(id(module), []).append(short)
        aliases.setdefault(id(module), []).extend({short, name, full})

    for name, module in wrapped.named_modules(remove_duplicate=False):
        if "parametrizations" in name.split("."):
            continue  # functions of a weight, not layers
        add(module, name, f"{prefix}{name}".removesuffix(".") if prefix else name)
    for outer, other in beside.items():
        for name, module in other.named_modules(remove_duplicate=False):
            full = f"{outer}.{name}".removesuffix(".")
            add(module, full, full)
    return [_Part(module, tuple(names[key]), tuple(aliases[key])) for key, module in modules.items()]


# ---- what is asked for


_Choice = tuple[nn.Module, Implementation, Any]


def _choices(found: list[_Part], spec: Spec) -> dict[int, _Choice]:
    """The implementation asked for, and the pattern it stands under, of each module that some pattern matches."""
    layers_of_net = [part for part in found if part.is_layer]
    if isinstance(spec, str):
        implementation = _implementation(spec)
        if not isinstance(implementation, str):
            raise ValueError(f"layers: expected 'numpy', 'torch' or a mapping of patterns, got {spec!r}")
        if not any(part.native in LAYERS for part in found):
            raise ValueError(
                "layers: expected a network with a layer that can be swapped (such as Conv2d, Linear, ReLU), got only "
                + _some(sorted({part.native.__name__ for part in layers_of_net} or {type(found[0].module).__name__}))
            )
        return {part.identity: (part.module, implementation, None) for part in layers_of_net}
    if not isinstance(spec, Mapping):
        raise ValueError(f"layers: expected 'numpy', 'torch' or a mapping of patterns, got {spec!r}")

    patterns = [(_pattern(key), _implementation(value)) for key, value in spec.items()]
    matched: dict[int, list[_Part]] = {index: [] for index in range(len(patterns))}
    choices: dict[int, _Choice] = {}
    for part in found:
        for index, (pattern, implementation) in enumerate(patterns):
            if _matches(pattern, part) and _takes(part, pattern, implementation):
                matched[index].append(part)
                choices.setdefault(part.identity, (part.module, implementation, pattern))
    for index, (pattern, _) in enumerate(patterns):
        if not matched[index]:
            raise ValueError(_no_match(pattern, found))
    return choices


def _pattern(key: Any) -> str | type[nn.Module]:
    if isinstance(key, type) and issubclass(key, nn.Module):
        return _NATIVE.get(key, key)
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)  # YAML reads the index of a Sequential as a number
    if isinstance(key, str):
        return key
    raise ValueError(f"layers: expected a pattern of names or a module class as key, got {key!r}")


def _matches(pattern: str | type[nn.Module], part: _Part) -> bool:
    if isinstance(pattern, str):
        return any(fnmatch.fnmatchcase(alias, pattern) for alias in part.aliases)
    return part.native is pattern


def _takes(part: _Part, pattern: str | type[nn.Module], implementation: Implementation) -> bool:
    """Layers take any implementation (or say why not); what only holds layers takes a class made for it."""
    if part.is_layer:
        return True
    return isinstance(implementation, type) and (issubclass(implementation, part.native) or pattern in part.aliases)


def _implementation(value: Any) -> Implementation:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return value
    if isinstance(value, str):
        if value in ("numpy", "torch"):
            return value
        if "." in value or ":" in value:
            return _import(value)
    close = difflib.get_close_matches(str(value), ["numpy", "torch"], 1)
    raise ValueError(
        f"layers: unknown implementation {value!r}{f' (did you mean {close[0]!r}?)' if close else ''}; expected "
        "'numpy', 'torch', a module class or its import path"
    )


def _import(path: str) -> type[nn.Module]:
    module_name, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"layers: unknown implementation {path!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"layers: expected {path!r} to be a subclass of torch.nn.Module, got {found!r}")
    return found


def _no_match(pattern: str | type[nn.Module], found: list[_Part]) -> str:
    names = [name for part in found if part.is_layer for name in part.names]
    if isinstance(pattern, type):
        there = sorted({part.native.__name__ for part in found if part.is_layer})
        return f"layers: no layer is a {pattern.__name__}; there are {_some(there)}"
    message = f"layers: pattern {pattern!r} matches no layer"
    holder = next((part for part in found if pattern in part.aliases), None)
    if holder is not None:
        inner = f"{pattern}.*" if pattern else "*"
        return f"{message}: it names a {type(holder.module).__name__} that holds layers; those are {inner!r}"
    close = difflib.get_close_matches(pattern, names, 4, 0.5)
    return f"{message}; there are {_some(list(dict.fromkeys([*close, *names])))}"


def _some(names: list[str], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(map(repr, names[:most])) + (f" and {rest} more" if rest > 0 else "")


# ---- what can be done


def _plan(found: list[_Part], choices: dict[int, _Choice]) -> list[tuple[_Part, type[nn.Module]]]:
    """The new class of each module, or the error that says why not."""
    plan: list[tuple[_Part, type[nn.Module]]] = []
    wanted: Counter[Any] = Counter()
    refused: dict[Any, str] = {}
    for part in found:
        if part.identity not in choices:
            continue
        _, implementation, pattern = choices[part.identity]
        target = _target(part, implementation)
        obstacle = "" if target is type(part.module) else _obstacle(part.module)
        if isinstance(implementation, type) and obstacle:
            raise ValueError(f"layers: {part.name!r} can't be swapped: {obstacle}")
        if implementation == "torch" and _is_ours(part.module) and target is not type(part.module) and obstacle:
            raise ValueError(f"layers: {part.name!r} can't be swapped back: {obstacle}")
        if implementation == "numpy" and (obstacle or not _is_ours_type(target)):
            refused.setdefault(pattern, f"{part.name!r}: {_reason(part.module)}")
            continue
        wanted[pattern] += 1
        if not obstacle:
            plan.append((part, target))
    for pattern, reason in refused.items():
        if pattern is not None and not wanted[pattern]:
            raise ValueError(f"layers: pattern {pattern!r} matches nothing that can be swapped: {reason}")
    return plan


def _target(part: _Part, implementation: Implementation) -> type[nn.Module]:
    native = part.native
    if implementation == "torch":
        return _native_base(part.module)
    if implementation == "numpy":
        return LAYERS.get(native, native) if not _obstacle(part.module) else type(part.module)
    assert isinstance(implementation, type)
    if not issubclass(implementation, native):
        raise TypeError(
            f"layers: {part.name!r}: expected a subclass of {native.__name__}, got {implementation.__qualname__}"
        )
    return implementation


def _native_base(module: nn.Module) -> type[nn.Module]:
    """The class that runs natively: for a parametrized layer of ours the native type it can't be given back to."""
    if _is_ours(module) and parametrize.is_parametrized(module):
        return next(_NATIVE[kind] for kind in type(module).__mro__ if kind in _NATIVE)
    return native_type(module)


def _is_ours_type(kind: type[nn.Module]) -> bool:
    return any(base in _NATIVE for base in kind.__mro__)


def _is_ours(module: nn.Module) -> bool:
    return _is_ours_type(type(module)) or _REMEMBERED in module.__dict__


def _obstacle(module: nn.Module) -> str:
    """Why this object's class can't be changed, though its type is known."""
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"its {names} is parametrized and a change of class would lose it (swap before it is parametrized)"
    if isinstance(module, LazyModuleMixin):
        return "it has no parameters yet (run one batch first)"
    if "forward" in module.__dict__:
        return "its forward was replaced on the object itself"
    return ""


def _reason(module: nn.Module) -> str:
    """Why a layer stays native although NumPy was asked for."""
    obstacle = _obstacle(module)
    if obstacle:
        return obstacle
    kind = type(module)
    base = next((base for base in kind.__mro__[1:] if base in LAYERS), None)
    if base is not None:
        return f"{kind.__name__} is a subclass of {base.__name__} and may compute something else"
    return f"there is no NumPy layer for {kind.__name__}"


@dataclass(frozen=True)
class _Change:
    """A module, and the class and memory it had before."""

    module: nn.Module
    before: type[nn.Module]
    remembered: type[nn.Module] | None

    def undo(self) -> None:
        _become(self.module, self.before)
        self.module.__dict__.pop(_REMEMBERED, None)
        if self.remembered is not None:
            self.module.__dict__[_REMEMBERED] = self.remembered


def _apply(plan: list[tuple[_Part, type[nn.Module]]], changes: list[_Change]) -> None:
    """Change the classes. What is begun stands in ``changes``, also where an error ends it."""
    for part, target in plan:
        module = part.module
        if target is type(module):
            continue
        native = part.native
        changes.append(_Change(module, type(module), module.__dict__.get(_REMEMBERED)))
        try:
            _become(module, target)
        except TypeError as error:  # a class with __slots__, say: Python can't exchange it
            raise TypeError(f"layers: {part.name!r} can't become a {target.__qualname__}: {error}") from error
        if target is native or target in _NATIVE:
            module.__dict__.pop(_REMEMBERED, None)
        else:
            module.__dict__[_REMEMBERED] = native


def _container(module: nn.Module) -> type[nn.Module]:
    """The class that fits what a Sequential holds; that of any other module."""
    if type(module) not in (nn.Sequential, fused.Sequential):
        return type(module)
    return fused.Sequential if any(map(_is_ours, module.children())) else nn.Sequential


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    object.__setattr__(module, "__class__", kind)  # past any __setattr__ of the module's own


# ---- what the report says


def formula_file(module: nn.Module) -> str:
    """The file of `cnn_lightning.ops` whose formulas a layer calls in NumPy; empty where it calls none."""
    entry = catalog.entries().get(native_type(module))
    return "" if entry is None else entry.formulas


def _chains(found: list[_Part]) -> dict[str, tuple[str, ...]]:
    """For each layer that may be computed in a chain, the others of that chain by their own names."""
    others: dict[str, tuple[str, ...]] = {}
    for part in found:
        if isinstance(part.module, fused.Sequential):
            for names in fused.chains(part.module):
                for name in names:
                    full = f"{part.name}.{name}".removeprefix(".")
                    others[full] = tuple(other for other in names if other != name)
    return others


def _rows(part: _Part, asked: bool, chains: Mapping[str, tuple[str, ...]]) -> Iterator[Row]:
    kind = type(part.module)
    for name in part.names if part.is_layer else ():
        if _is_ours(part.module):
            ours = kind in _NATIVE or parametrize.is_parametrized(part.module)
            implementation, file = ("numpy", formula_file(part.module)) if ours else (kind.__name__, "")
            yield Row(name, part.native.__name__, implementation, "", file, chains.get(name, ()))
        elif part.native in LAYERS and not _obstacle(part.module):
            yield Row(name, kind.__name__, "torch", "as asked" if asked else "no pattern names it")
        else:
            yield Row(name, kind.__name__, "torch", _reason(part.module))
    if not part.is_layer:
        calls = _functional_calls(part.module)
        if calls:
            reason = f"its forward calls {', '.join(calls)} as a function, not as a layer"
            yield from (Row(name, kind.__name__, "torch", reason) for name in part.names)


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
                found = (known[called] for called in _named(function, layers_of_it) if called in known)
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


def _named(method: types.FunctionType, layers_of_it: set[str]) -> Iterator[Any]:
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
