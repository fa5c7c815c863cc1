"""The Python code that makes a module of torch: the call of its constructor, or a class where torch.fx can trace it."""

import inspect
import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_unflatten

from cnn_lightning.tools.parity.layerwise.functions import FunctionCall

WRITABLE = (bool, int, float, str, torch.dtype, slice, type(None), type(...))
"""The types of the values, apart from tensors, that can be written as code."""

_REPEATED = {"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size"}
"""Options for which torch reads one number as the same number for every axis."""
_OPERATORS = {
    operator.add: "+",
    operator.iadd: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.imul: "*",
    operator.truediv: "/",
    operator.matmul: "@",
}
_TAKEN = set(dir(nn.Module()))
_INLINE = 90
"""The longest expression, in characters, that stays one expression."""


class NoCode(ValueError):
    """A module, or a value, that can't be written as code; the message is the reason."""


@dataclass(frozen=True)
class Code:
    """How a module is made.

    Attributes:
        made: An expression that makes it.
        before: The lines before it, for a class.
        names: The name of each submodule in the module that is made, by its name in the module that was given; and of
            parameters that are no layer's.
        writes: Whether the module may write into its input.
    """

    made: str
    before: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    writes: bool = False

    def name_of(self, given: str) -> str | None:
        """The name of a parameter or buffer by the one that it had; None if the code does not use it."""
        if given in self.names:
            return self.names[given]
        home, _, last = given.rpartition(".")
        return None if home not in self.names else _dotted(self.names[home], last)


# ---- a layer


def options_of(module: nn.Module) -> dict[str, Any]:
    """The arguments of the constructor of a layer of `torch.nn` that differ from their defaults.

    Raises:
        NoCode: The class is not one of `torch.nn`, or its arguments can't be read from the layer.
    """
    kind = type(module)
    if getattr(nn, kind.__name__, None) is not kind:
        raise NoCode(f"{kind.__module__}.{kind.__qualname__} is no layer of torch.nn")
    options = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        value = getattr(module, name, parameter.default)
        if isinstance(parameter.default, bool) and (value is None or isinstance(value, Tensor)):
            value = value is not None  # `bias`
        if value is inspect.Parameter.empty:
            raise NoCode(f"the arguments of {kind.__name__} can't be read from the layer")
        if parameter.default is inspect.Parameter.empty or not _equal(value, parameter.default):
            options[name] = value
    try:
        with torch.device("meta"):
            made = kind(**options)
    except Exception as error:  # a constructor with other rules than those of its attributes
        raise NoCode(f"the constructor of {kind.__name__} refuses what the layer has") from error
    if not _is_alike(made, module):
        raise NoCode(f"the constructor of {kind.__name__} makes another layer")
    return options


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    return bool(a == b) or (isinstance(a, tuple) and bool(a) and isinstance(b, int) and set(a) == {b})


def _is_alike(made: nn.Module, module: nn.Module) -> bool:
    """Whether two layers have the same options, and parameters and buffers of the same shapes."""

    def state(layer: nn.Module) -> Any:
        tensors = layer.state_dict(keep_vars=True).items()
        options = {key: value for key, value in vars(layer).items() if not key.startswith("_") and key != "training"}
        return {key: value.shape for key, value in tensors}, {key: repr(value) for key, value in options.items()}

    return bool(state(made) == state(module)) and not next(module.children(), None)


def layer_code(kind: type[nn.Module], options: Mapping[str, Any]) -> str:
    """The call of a constructor of `torch.nn`; a tensor, such as the weights of classes, is one of ones there.

    Raises:
        NoCode: An option that can't be written.
    """
    parameters, given = inspect.signature(kind).parameters, []
    for name, value in options.items():
        is_tensor = isinstance(value, Tensor)
        text = f"torch.ones{literal(tuple(value.shape))}" if is_tensor else literal(_short(name, value))
        given.append(text if parameters[name].default is inspect.Parameter.empty else f"{name}={text}")
    return f"nn.{kind.__name__}({', '.join(given)})"


def _short(name: str, value: Any) -> Any:
    same = isinstance(value, tuple) and len(set(value)) == 1 and name in _REPEATED
    return value[0] if same else value


def literal(value: Any) -> str:
    """A value without tensors as code.

    Raises:
        NoCode: It can't be written.
    """
    if isinstance(value, (tuple, list)):
        inside = ", ".join(literal(each) for each in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, slice):
        return f"slice({literal(value.start)}, {literal(value.stop)}, {literal(value.step)})"
    if not isinstance(value, WRITABLE):
        raise NoCode(f"a value of type {type(value).__name__} can't be written as code")
    if isinstance(value, str):
        return json.dumps(value)
    text = repr(value)
    return f"float('{text}')" if isinstance(value, float) and text.lstrip("-") in ("inf", "nan") else text


# ---- a part of a network


def code_of(module: nn.Module) -> Code:
    """The code of any part: a layer, a Sequential of such parts, or what torch.fx can trace.

    Raises:
        NoCode: Why there is none.
    """
    if isinstance(module, FunctionCall):
        return _called(module)
    if type(module) is nn.Sequential:
        parts = {name: code_of(child) for name, child in module.named_children()}
        if not any(part.before for part in parts.values()):
            names = {"": ""}
            for number, (name, part) in enumerate(parts.items()):
                names |= {_dotted(name, old): _dotted(str(number), new) for old, new in part.names.items()}
            made = f"nn.Sequential({', '.join(part.made for part in parts.values())})"
            return Code(made, (), names, any(part.writes for part in parts.values()))
    elif getattr(nn, type(module).__name__, None) is type(module):
        options = options_of(module)
        return Code(layer_code(type(module), options), writes=bool(options.get("inplace")))
    return _traced(module)


def _dotted(*names: str) -> str:
    return ".".join(name for name in names if name)


class _Tracer(fx.Tracer):  # type: ignore[no-any-unimported, misc, unused-ignore]
    """Enters everything but the layers of torch.nn."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return getattr(nn, type(module).__name__, None) is type(module) and type(module) is not nn.Sequential


def _traced(module: nn.Module) -> Code:
    """A class with the layers that the forward calls, and its operations."""
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # the forward of a user's class may raise anything
        raise NoCode(f"torch.fx can't trace {type(module).__name__}: {str(error).splitlines()[0][:100]}") from error
    return _Class(module, graph).code()


def _called(call: FunctionCall) -> Code:
    """A class with the function that the container of a network called."""
    if type(call) is not FunctionCall:
        raise NoCode(f"NumPy's {call.function.__name__} is no layer")
    graph = fx.Graph()
    nodes = {place: graph.placeholder(f"x{number or ''}") for number, place in enumerate(call.places)}
    given = [nodes.get(place, value) for place, value in enumerate(call.given)]
    args, kwargs = tree_unflatten(given, call.structure)
    graph.output(graph.call_function(call.function, args, kwargs))
    return replace(_Class(call, graph).code(), writes=call.inplace)


class _Class:
    """A traced module as the lines of a class."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.module, self.graph = module, graph
        self.layers: dict[str, str] = {}
        self.names: dict[str, str] = {"": ""}
        self.expressions: dict[fx.Node, str] = {}
        self.lines: list[str] = []
        self.arguments: list[str] = []

    def code(self) -> Code:
        for node in self.graph.nodes:
            self._enter(node)
        made = [f"        self.{name} = {made}" for name, made in self.layers.items()]
        before = (
            "class Part(nn.Module):",
            *(("    def __init__(self):", "        super().__init__()", *made, "") if made else ()),
            f"    def forward({', '.join(['self', *self.arguments])}):",
            *(f"        {line}" for line in self.lines),
        )
        return Code("Part()", before, self.names)

    def _enter(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.arguments.append(node.name)
            self.expressions[node] = node.name
        elif node.op == "output":
            self.lines.append(f"return {self._text(node.args[0])}")
        else:
            text = getattr(self, f"_{node.op}")(node)
            if len(node.users) == 1 and len(text) <= _INLINE:
                self.expressions[node] = text
            elif node.users:
                self.lines.append(f"{node.name} = {text}")
                self.expressions[node] = node.name

    def _call_module(self, node: fx.Node) -> str:
        target = str(node.target)
        layer = self.module.get_submodule(target)
        options = {key: value for key, value in options_of(layer).items() if key != "inplace"}
        made = layer_code(type(layer), options)
        return f"self.{self._named(target, made)}({self._arguments(node)})"

    def _named(self, target: str, made: str) -> str:
        """The attribute of the class for a submodule or parameter."""
        name = target.replace(".", "_")
        if name in _TAKEN:
            raise NoCode(f"{target} is the name of an attribute of every module")
        self.layers[name] = made
        self.names[target] = name
        return name

    def _get_attr(self, node: fx.Node) -> str:
        target = str(node.target)
        home, _, key = target.rpartition(".")
        value = self.module.get_submodule(home)._parameters.get(key)
        if value is None:
            raise NoCode(f"{target} is a tensor of {type(self.module).__name__}, and no parameter")
        return f"self.{self._named(target, f'nn.Parameter(torch.randn({literal(tuple(value.shape))}))')}"

    def _call_function(self, node: fx.Node) -> str:
        function: Any = node.target
        if function is operator.getitem:
            return f"{self._text(node.args[0])}[{self._text(node.args[1])}]"
        if function in _OPERATORS:
            return f"({self._text(node.args[0])} {_OPERATORS[function]} {self._text(node.args[1])})"
        name = path_of(function)
        if not name.startswith(("torch.", "nn.")):
            raise NoCode(f"{name} is no function of torch")
        return f"{name}({self._arguments(node)})"

    def _call_method(self, node: fx.Node) -> str:
        return f"{self._text(node.args[0])}.{node.target}({self._arguments(node, skip=1)})"

    def _arguments(self, node: fx.Node, skip: int = 0) -> str:
        given = [self._text(value) for value in node.args[skip:]]
        # An operation that writes into its input would reach its other readers, too.
        given += [f"{key}={self._text(value)}" for key, value in node.kwargs.items() if key != "inplace"]
        return ", ".join(given)

    def _text(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.expressions[value]
        if isinstance(value, (tuple, list)):
            inside = ", ".join(self._text(each) for each in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
        return literal(value)


def path_of(function: Any) -> str:
    """The name of a function in a program, such as ``torch.sigmoid``."""
    short = function.__name__
    for home, module in (("torch", torch), ("nn.functional", nn.functional), ("torch.Tensor", Tensor)):
        if getattr(module, short, None) is function:
            return f"{home}.{short}"
    return f"{fx.node._get_qualified_name(function)}"
