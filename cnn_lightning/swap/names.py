"""The modules of a network under all their names, and the patterns that choose among them."""

import difflib
import fnmatch
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils import parametrize

from cnn_lightning.swap.native import LAYERS, NATIVE, REMEMBERED, layer_base, native_type, path_of

Implementation: TypeAlias = str | type[nn.Module]
Spec: TypeAlias = str | Mapping[Any, Any]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_INNER = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
"""Parts of a dotted name that torch.compile and friends put in; patterns match with and without them."""


@dataclass(frozen=True)
class Named:
    """A module under all its names; a module that is used in two places has two."""

    module: nn.Module
    names: tuple[str, ...]
    aliases: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def identity(self) -> int:
        """The number that Python knows the module by."""
        return id(self.module)

    @property
    def native(self) -> type[nn.Module]:
        """Its native type."""
        return native_type(self.module)

    @property
    def is_layer(self) -> bool:
        """Whether it computes something itself, as far as can be told from outside."""
        module = self.module
        if layer_base(self.native) is not None or REMEMBERED in module.__dict__:
            return True
        if isinstance(module, (*_CONTAINERS, *_WRAPPERS)):
            return False
        leaf = next(module.children(), None) is None or parametrize.is_parametrized(module)
        own = type(module).__module__.startswith("torch.nn.") and bool(module._parameters)
        return leaf or own


def _unwrapped(net: nn.Module) -> tuple[nn.Module, str]:
    prefix = ""
    while isinstance(net, (*_WRAPPERS, torch._dynamo.OptimizedModule)):
        name = "module" if isinstance(net, _WRAPPERS) else "_orig_mod"
        net, prefix = getattr(net, name), f"{prefix}{name}."
    return net, prefix


def inner(net: nn.Module) -> nn.Module:
    """The network in DistributedDataParallel, DataParallel or torch.compile."""
    return _unwrapped(net)[0]


def modules_of(net: nn.Module, beside: Mapping[str, nn.Module]) -> list[Named]:
    """Every module of a network and of the modules beside it, each once."""
    wrapped, prefix = _unwrapped(net)
    modules: dict[int, nn.Module] = {}
    names: dict[int, list[str]] = {}
    aliases: dict[int, list[str]] = {}

    def add(module: nn.Module, name: str, full: str) -> None:
        modules[id(module)] = module
        short = ".".join(word for word in name.split(".") if word not in _INNER)
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
    return [Named(module, tuple(names[key]), tuple(aliases[key])) for key, module in modules.items()]


# ---- what is asked for


Choice = tuple[nn.Module, Implementation, Any]


def choices_for(found: list[Named], spec: Spec) -> dict[int, Choice]:
    """The implementation asked for, and the pattern it stands under, of each module that some pattern matches."""
    layers_of_net = [named for named in found if named.is_layer]
    if isinstance(spec, str):
        implementation = _implementation(spec)
        if not isinstance(implementation, str):
            raise ValueError(f"layers: expected 'numpy', 'torch' or a mapping of patterns, got {spec!r}")
        if not any(named.native in LAYERS for named in found):
            raise ValueError(
                "layers: expected a network with a layer that can be swapped (such as Conv2d, Linear, ReLU), got only "
                + _some(sorted({path_of(named.native) for named in layers_of_net} or {path_of(type(found[0].module))}))
            )
        return {named.identity: (named.module, implementation, None) for named in layers_of_net}
    if not isinstance(spec, Mapping):
        raise ValueError(f"layers: expected 'numpy', 'torch' or a mapping of patterns, got {spec!r}")

    patterns = [(_pattern(key, found), _implementation(value)) for key, value in spec.items()]
    matched: dict[int, list[Named]] = {index: [] for index in range(len(patterns))}
    choices: dict[int, Choice] = {}
    for named in found:
        for index, (pattern, implementation) in enumerate(patterns):
            if _matches(pattern, named) and _takes(named, pattern, implementation):
                matched[index].append(named)
                choices.setdefault(named.identity, (named.module, implementation, pattern))
    for index, (pattern, _) in enumerate(patterns):
        if not matched[index]:
            raise ValueError(_no_match(pattern, found))
    return choices


def is_explicit(named: Named, pattern: Any) -> bool:
    """Whether a pattern asks for this very layer or type: one with a star may match by chance."""
    return isinstance(pattern, type) or pattern in named.aliases


def _pattern(key: Any, found: list[Named]) -> str | type[nn.Module]:
    if isinstance(key, str) and not any(key in named.aliases for named in found):
        key = _loaded_class(key) or key
    if isinstance(key, type) and issubclass(key, nn.Module):
        return NATIVE.get(key, key)
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)  # YAML reads the index of a Sequential as a number
    if isinstance(key, str):
        return key
    raise ValueError(f"layers: expected a pattern of names or a module class as key, got {key!r}")


def _loaded_class(path: str) -> type[nn.Module] | None:
    """The class with an import path. That of a layer of the network is loaded, so nothing is imported to find it."""
    module_name, _, name = path.rpartition(".")
    module = sys.modules.get(module_name)
    kind = None if module is None else vars(module).get(name)  # a module that loads its parts when asked is not asked
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def _matches(pattern: str | type[nn.Module], named: Named) -> bool:
    if isinstance(pattern, str):
        return any(fnmatch.fnmatchcase(alias, pattern) for alias in named.aliases)
    return named.native is pattern


def _takes(named: Named, pattern: str | type[nn.Module], implementation: Implementation) -> bool:
    """Layers take any implementation (or say why not); what only holds layers takes a class made for it."""
    if named.is_layer:
        return True
    return isinstance(implementation, type) and (issubclass(implementation, named.native) or pattern in named.aliases)


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


def _no_match(pattern: str | type[nn.Module], found: list[Named]) -> str:
    names = [name for named in found if named.is_layer for name in named.names]
    if isinstance(pattern, type):
        there = sorted({path_of(named.native) for named in found if named.is_layer})
        return f"layers: no layer is a {path_of(pattern)}; there are {_some(there)}"
    message = f"layers: pattern {pattern!r} matches no layer"
    holder = next((named for named in found if pattern in named.aliases), None)
    if holder is not None:
        those = f"{pattern}.*" if pattern else "*"
        return f"{message}: it names a {path_of(type(holder.module))} that holds layers; those are {those!r}"
    close = difflib.get_close_matches(pattern, names, 4, 0.5)
    return f"{message}; there are {_some(list(dict.fromkeys([*close, *names])))}"


def _some(names: list[str], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(map(repr, names[:most])) + (f" and {rest} more" if rest > 0 else "")
