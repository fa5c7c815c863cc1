"""Which class each chosen module gets, what prevents a change of class, and the change, which can be undone."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from cnn_lightning.swap.arithmetic import is_without_arithmetic
from cnn_lightning.swap.based import AsBase, as_base
from cnn_lightning.swap.names import Choice, Implementation, Named, is_explicit
from cnn_lightning.swap.native import (
    CONTAINERS,
    LAYERS,
    NATIVE,
    REMEMBERED,
    is_ours,
    is_ours_type,
    layer_base,
    native_type,
    path_of,
)


def new_classes(found: list[Named], choices: dict[int, Choice]) -> list[tuple[Named, type[nn.Module]]]:
    """The new class of each module, or the error that says why not."""
    plan: list[tuple[Named, type[nn.Module]]] = []
    wanted: Counter[Any] = Counter()
    refused: dict[Any, str] = {}
    for named in found:
        if named.identity not in choices:
            continue
        _, implementation, pattern = choices[named.identity]
        target = _target(named, implementation, is_explicit(named, pattern))
        prevented = "" if target is type(named.module) else obstacle(named.module)
        if isinstance(implementation, type) and prevented:
            raise ValueError(f"layers: {named.name!r} can't be swapped: {prevented}")
        if implementation == "torch" and is_ours(named.module) and target is not type(named.module) and prevented:
            raise ValueError(f"layers: {named.name!r} can't be swapped back: {prevented}")
        if implementation == "numpy" and is_without_arithmetic(target):
            wanted[pattern] += 1
            continue
        if implementation == "numpy" and (prevented or not is_ours_type(target)):
            refused.setdefault(pattern, f"{named.name!r}: {reason_native(named.module)}{_way_out(named.module)}")
            continue
        wanted[pattern] += 1
        if not prevented:
            plan.append((named, target))
    for pattern, reason in refused.items():
        if pattern is not None and not wanted[pattern]:
            shown = path_of(pattern) if isinstance(pattern, type) else pattern
            raise ValueError(f"layers: pattern {shown!r} matches nothing that can be swapped: {reason}")
    return plan


def _target(named: Named, implementation: Implementation, explicit: bool) -> type[nn.Module]:
    native = named.native
    if implementation == "torch":
        return _native_base(named.module)
    if implementation == "numpy":
        kind = type(named.module)
        if obstacle(named.module) or issubclass(kind, AsBase):
            return kind
        return as_base(native) if explicit and _may_be_as_base(native) else LAYERS.get(native, native)
    assert isinstance(implementation, type)
    if not issubclass(implementation, native):
        raise TypeError(
            f"layers: {named.name!r}: expected a subclass of {path_of(native)}, got {path_of(implementation)}"
        )
    return implementation


def _may_be_as_base(native: type[nn.Module]) -> bool:
    """Whether it is a class of a network's own, whose functions may run in NumPy though the class is not ours."""
    return not (native in LAYERS or is_ours_type(native) or is_without_arithmetic(native) or _is_of_torch(native))


def _is_of_torch(kind: type[nn.Module]) -> bool:
    return kind.__module__.startswith("torch.nn.") and layer_base(kind) is None


def _native_base(module: nn.Module) -> type[nn.Module]:
    """The class that runs natively: for a parametrized NumPy layer, a native type that its object can't become."""
    if is_ours(module) and parametrize.is_parametrized(module):
        return next(NATIVE[kind] for kind in type(module).__mro__ if kind in NATIVE)
    return native_type(module)


def obstacle(module: nn.Module) -> str:
    """Why this object's class can't be changed, though its type is known."""
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"its {names} is parametrized and a change of class would lose it (swap before it is parametrized)"
    if isinstance(module, LazyModuleMixin):
        return "it has no parameters yet (run one batch first)"
    if "forward" in module.__dict__:
        return "its forward was replaced on the object itself"
    return ""


def _way_out(module: nn.Module) -> str:
    kind = type(module)
    if obstacle(module) or layer_base(kind) is None or not _may_be_as_base(kind):
        return ""
    return f" (to treat it as its base, ask for {path_of(kind)!r} or for its full name)"


def reason_native(module: nn.Module) -> str:
    """Why a layer stays native although NumPy was asked for."""
    prevented = obstacle(module)
    if prevented:
        return prevented
    kind = type(module)
    base = layer_base(kind)
    if base is not None:
        return f"{path_of(kind)} is a subclass of {base.__name__} and may compute something else"
    return f"there is no NumPy layer for {path_of(kind)}"


@dataclass(frozen=True)
class Change:
    """A module, and the class and memory it had before."""

    module: nn.Module
    before: type[nn.Module]
    remembered: type[nn.Module] | None

    def undo(self) -> None:
        """Give the module its class and memory back."""
        _become(self.module, self.before)
        self.module.__dict__.pop(REMEMBERED, None)
        if self.remembered is not None:
            self.module.__dict__[REMEMBERED] = self.remembered


def apply(plan: list[tuple[Named, type[nn.Module]]], changes: list[Change]) -> None:
    """Change the classes. Each change is in ``changes`` before it begins, so that it can be undone after an error."""
    for named, target in plan:
        module = named.module
        if target is type(module):
            continue
        native = named.native
        changes.append(Change(module, type(module), module.__dict__.get(REMEMBERED)))
        try:
            _become(module, target)
        except TypeError as error:  # a class with __slots__, say: Python can't exchange it
            raise TypeError(f"layers: {named.name!r} can't become a {target.__qualname__}: {error}") from error
        if target is native or target in NATIVE:
            module.__dict__.pop(REMEMBERED, None)
        else:
            module.__dict__[REMEMBERED] = native


def class_of_container(module: nn.Module) -> type[nn.Module]:
    """The class that a container needs for the layers in it; any other module keeps its own."""
    native = NATIVE.get(type(module), type(module))
    if native not in CONTAINERS:
        return type(module)
    inside = module.children() if native is nn.Sequential else module.modules()
    layers = (each for each in inside if native is nn.Sequential or native_type(each) not in CONTAINERS)
    return CONTAINERS[native] if any(map(is_ours, layers)) else native


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    object.__setattr__(module, "__class__", kind)  # not through a __setattr__ that the module defines
    # A new class leaves a module's dictionary as it is. Compiled code of torch 2.11 compares no classes while the
    # dictionary is untouched, so it would go on with the old class.
    module.__dict__["_swapped"] = True
    del module.__dict__["_swapped"]
