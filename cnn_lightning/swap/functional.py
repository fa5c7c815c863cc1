"""Functions of torch computed by the NumPy layer of the same operation, inside the forward of one module."""

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, get_testing_overrides

from cnn_lightning.layers import catalog

_INDICES = "_with_indices"


class InNumPy(TorchFunctionMode):
    """While inside, calls of functions that a NumPy layer computes become calls of that layer's forward.

    A call with an option that the layer does not have (``dtype=`` of softmax) stays torch's.

    Args:
        names: Of the functions, such as ``"conv2d"``; None for all that some layer computes.
    """

    def __init__(self, names: frozenset[str] | None) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function, or the forward of the layer that computes it."""
        kwargs = kwargs or {}
        known = _FUNCTIONS.get(function)
        if known is not None and (self.names is None or known.name in self.names):
            call = _call(known, args, kwargs)
            if call is not None:
                layer, inputs = call
                with _computing():
                    y = layer.forward(*inputs)
                    if "inplace" in known.implied and not hasattr(layer, "inplace"):
                        return inputs[0].copy_(y)
                    return y
        return function(*args, **kwargs)


# ---- the functions


@dataclass(frozen=True)
class _Native:
    """A layer's class, the names of its forward's arguments, and its options with their defaults."""

    layer: type[nn.Module]
    inputs: tuple[str, ...]
    options: Mapping[str, Any]
    allowed: frozenset[str]

    @staticmethod
    def of(entry: catalog.Entry) -> "_Native":
        _, _, *others = inspect.signature(entry.native.forward).parameters
        inputs = ("input", *others)  # functions call the first input so, even where the forward has another name
        options = _defaults(inspect.signature(entry.native))
        tensors = ("weight", "bias", "running_mean", "running_var", "training", "use_input_stats", "_stacklevel")
        return _Native(entry.layer, inputs, options, frozenset((*inputs, *options, *tensors)))


@dataclass(frozen=True)
class _Function:
    """A function of torch: its arguments with their defaults, those that its name implies, and who computes it."""

    name: str
    defaults: Mapping[str, Any]
    implied: Mapping[str, Any]
    natives: Mapping[str, _Native]
    """See `_by_axes`."""


def _defaults(signature: inspect.Signature) -> dict[str, Any]:
    return {
        name: None if parameter.default is parameter.empty else parameter.default
        for name, parameter in signature.parameters.items()
    }


def _signature(function: Any) -> inspect.Signature | None:
    """The arguments of a function of torch; for one in C++ only torch's own table of overrides has them."""
    if isinstance(function, FunctionType):
        signature = inspect.signature(function)
        if all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in signature.parameters.values()):
            return signature
    stand_in = get_testing_overrides().get(function)
    return None if stand_in is None else inspect.signature(stand_in)


def _table() -> dict[Any, _Function]:
    natives: dict[str, list[catalog.Entry]] = {}
    for entry in catalog.entries().values():
        for name in dict.fromkeys(name.removesuffix("_") for name in entry.functions):
            natives.setdefault(name, []).append(entry)
    found = {}
    for name, entries in natives.items():
        by_axes = {key: _Native.of(entry) for key, entry in _by_axes(entries).items()}
        variants: tuple[tuple[str, dict[str, Any]], ...] = (
            (name, {}),
            (f"{name}_", {"inplace": True}),
            (f"{name}{_INDICES}", {"return_indices": True}),
        )
        for written, implied in variants:
            for home in (functional, torch, Tensor):
                function = getattr(home, written, None)
                signature = None if function is None else _signature(function)
                if signature is not None:
                    found[function] = _Function(name, _defaults(signature), implied, by_axes)
    return found


def _by_axes(entries: Sequence[catalog.Entry]) -> dict[str, catalog.Entry]:
    """Of several layers with one function the general one, else one for "1d", "2d" and "3d".

    A function stays torch's where two layers fix different options of it (modes of padding, say).
    """
    general = [entry for entry in entries if not entry.native.__name__.endswith(("1d", "2d", "3d"))]
    if len(entries) == 1 or len(general) == 1:
        return {"": (general or entries)[0]}
    endings = [entry.native.__name__[-2:] for entry in entries]
    return {key: entry for key, entry in zip(endings, entries, strict=True) if endings.count(key) == 1}


_FUNCTIONS = _table()


# ---- the layer of one call


def _call(function: _Function, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, list[Any]] | None:
    """A layer with the options of the call, and its inputs; None where no layer has these options."""
    defaults = function.defaults
    given = {**dict(zip(defaults, args, strict=False)), **kwargs}
    x = given.get("input")
    if len(args) > len(defaults) or not isinstance(x, Tensor):
        return None
    native = function.natives.get("") or function.natives.get(_axes(x))
    if native is None:
        return None
    if any(key not in native.allowed and not _is(value, defaults.get(key, ...)) for key, value in given.items()):
        return None
    implied = {key: value for key, value in function.implied.items() if key in native.options}
    attributes = {**native.options, **{k: v for k, v in defaults.items() if k in native.allowed}, **given, **implied}
    inputs = [attributes.pop(key) for key in native.inputs if key in attributes]
    if not _complete(attributes, x):
        return None
    layer = object.__new__(native.layer)
    layer.__dict__.update(attributes, _parameters={}, _buffers={}, _modules={})
    return layer, inputs


def _is(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, bool | int | float | str) and bool(value == default))


def _axes(x: Tensor) -> str:
    return {2: "1d", 3: "1d", 4: "2d", 5: "3d"}.get(x.dim(), "")


def _complete(attributes: dict[str, Any], x: Tensor) -> bool:
    """Add what a layer keeps and its function computes; False for arguments that torch refuses with its own error."""
    weight = attributes.get("weight")
    if "padding_mode" in attributes:  # a convolution
        axes = weight.dim() - 2 if isinstance(weight, Tensor) else 0
        if axes < 1:
            return False
        attributes["kernel_size"] = tuple(weight.shape[2:])  # type: ignore[union-attr]
        for key in ("stride", "padding", "dilation", "output_padding"):
            if isinstance(attributes.get(key), int):
                attributes[key] = (attributes[key],) * axes
    elif "track_running_stats" in attributes:  # a batch or instance norm
        training = bool(attributes.pop("use_input_stats", attributes.get("training")))
        known = attributes["running_mean"] is not None and attributes["running_var"] is not None
        attributes.update(training=training, track_running_stats=known, num_batches_tracked=None)
        attributes.update(affine=weight is not None, num_features=x.shape[1])
        return known or training
    elif "num_groups" in attributes:
        attributes.update(affine=weight is not None, num_channels=x.shape[1] if x.dim() > 1 else 0)
    return True


# ---- who computes


_thread = threading.local()


@contextmanager
def _computing() -> Iterator[None]:
    if torch.compiler.is_compiling():
        yield
        return
    before, _thread.computing = is_computing(), True
    try:
        yield
    finally:
        _thread.computing = before


def is_computing() -> bool:
    """Whether this thread computes a function by a NumPy layer, whose own functions are no business of observers."""
    return getattr(_thread, "computing", False)
