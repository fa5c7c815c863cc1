"""The program that shows a fault, as data: a layer, its numbers, a mode of torch, a result; its lines, and its run."""

import contextlib
import copy
import inspect
import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cnn_lightning.tools.parity.layerwise.runner import Place, is_gradient
from cnn_lightning.tools.parity.reproducer.constructors import Code, layer_code, literal

WIDTH = 120
"""The longest line, in characters."""
LITERALS = 64
"""The most numbers that are written one by one in a tensor."""

Way = Literal["given", "literal", "random", "ones", "zeros"]


# ---- tensors


@dataclass(frozen=True)
class Numbers:
    """A tensor with its strides, and how the program makes it; ``given`` is no code yet."""

    values: Tensor
    way: Way = "given"

    def code(self) -> str | None:
        """An expression that makes it; None for ``given``."""
        x, dtype = self.values, _dtype(self.values.dtype)
        if self.way == "given" or (self.way == "literal" and x.numel() > LITERALS):
            return None
        size, suffix = self._layout()
        if self.way == "literal":
            numbers = x.tolist() if len(size) == x.dim() else x.as_strided(size, (1,)).tolist()
            return f"torch.tensor({_numbers(numbers, x.dtype)}{dtype}){suffix}"
        function = {"random": "randn"}.get(self.way, self.way)
        shape = ", ".join(map(str, size)) if size else "()"
        return f"torch.{function}({shape}{dtype}){suffix}"

    def _layout(self) -> tuple[tuple[int, ...], str]:
        """The shape of a contiguous tensor, and what makes the layout of this one from it."""
        x = self.values
        shape, strides = tuple(x.shape), x.stride()
        if strides == torch.empty(shape).stride():
            return shape, ""
        for dims, name in ((4, "channels_last"), (5, "channels_last_3d")):
            memory_format = getattr(torch, name)
            if x.dim() == dims and strides == torch.empty(shape, memory_format=memory_format).stride():
                return shape, f".to(memory_format=torch.{name})"
        length = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        return (length,), f".as_strided({shape}, {strides})"


def _dtype(dtype: torch.dtype) -> str:
    return "" if dtype in (torch.float32, torch.int64, torch.bool) else f", dtype={dtype}"


def _numbers(values: Any, dtype: torch.dtype) -> str:
    """Numbers, or lists of them, with the fewest digits that give the same number in ``dtype``."""
    if isinstance(values, list):
        return f"[{', '.join(_numbers(value, dtype) for value in values)}]"
    if not isinstance(values, float):
        return repr(values)
    if not math.isfinite(values):
        return f"{'-' * (values < 0)}torch.{'nan' if math.isnan(values) else 'inf'}"
    digits = range(1, 18)
    return next(text for n in digits if _same(text := repr(float(f"{values:.{n}g}")), values, dtype))


def _same(text: str, value: float, dtype: torch.dtype) -> bool:
    return torch.tensor(float(text), dtype=dtype).item() == value


def relaid(x: Tensor, like: Tensor) -> Tensor:
    """``x``, with as many axes as ``like``, dense in memory, with the axes in the order of that of ``like``."""
    repeated = [axis for axis, stride in enumerate(like.stride()) if not stride and like.shape[axis] > 1]
    shape = x.shape
    for axis in repeated:
        x = x.narrow(axis, 0, min(1, x.shape[axis]))
    strides, length = [0] * x.dim(), 1
    for axis in sorted(range(x.dim()), key=lambda axis: (like.stride(axis), like.shape[axis] != 1, -axis)):
        strides[axis] = length
        length *= max(1, x.shape[axis])
    return torch.empty_strided(x.shape, strides, dtype=x.dtype).copy_(x).expand(shape)


# ---- the program


class Part(Protocol):
    """What makes the layer, or part of a network."""

    def code(self) -> Code:
        """Its code, without precision and mode."""


@dataclass(frozen=True)
class Layer:
    """A layer of `torch.nn`."""

    kind: type[nn.Module]
    options: Mapping[str, Any]

    @property
    def optional(self) -> set[str]:
        """The options that have a default."""
        parameters = inspect.signature(self.kind).parameters
        return {name for name in self.options if parameters[name].default is not inspect.Parameter.empty}

    def code(self) -> Code:
        """The call of its constructor."""
        return Code(layer_code(self.kind, self.options), writes=bool(self.options.get("inplace")))


@dataclass(frozen=True)
class Whole:
    """A part of a network, which is not made smaller."""

    written: Code

    def code(self) -> Code:
        """As it was found."""
        return self.written


@dataclass(frozen=True)
class Mode:
    """The implementation that the program runs.

    Attributes:
        imports: Lines after ``from torch import nn``.
        lines: They turn it on, with a module ``layer`` and its first input ``x``.
        around: The context of the forward.
        around_all: The context of forward and backward.
        device: None for the CPU.
        is_program: Whether ``layer`` is compiled.
    """

    imports: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    around: str = ""
    around_all: str = ""
    device: str | None = None
    is_program: bool = False


@dataclass(frozen=True)
class Case:
    """A program that may show a fault.

    Attributes:
        part: What makes the layer.
        dtype: The precision of the layer; None if it has no numbers.
        training: Its mode.
        state: Parameters and buffers, by name, that are not those of the constructor.
        inputs: The arguments, by their names in the program: `Numbers`, or values that can be written.
        keywords: The keyword arguments, without tensors.
        upstream: The gradient of each output, by the output's index among the floating-point ones.
        place: The result that is wrong.
        mode: What computes it.
    """

    part: Part
    dtype: torch.dtype | None
    training: bool
    state: dict[str, Numbers]
    inputs: dict[str, Any]
    keywords: dict[str, Any]
    upstream: dict[int, Numbers]
    place: Place
    mode: Mode = field(default_factory=Mode)

    @property
    def backward(self) -> bool:
        """Whether the result is a gradient."""
        return is_gradient(self.place)

    @property
    def leaf(self) -> str:
        """The name of the input whose gradient is wrong; empty if it is another result."""
        return list(self.inputs)[self.place[1]] if self.place[0] == "grad_inputs" else ""

    @property
    def numbers(self) -> Iterator[Numbers]:
        """All tensors."""
        yield from self.state.values()
        yield from (value for value in self.inputs.values() if isinstance(value, Numbers))
        yield from self.upstream.values() if self.backward else ()

    def is_random(self, layer: nn.Module) -> bool:
        """Whether the program draws random numbers: for a tensor, or for a parameter of the layer."""
        free = [value for name, value in layer.named_parameters() if name not in self.state]
        constant = all(bool(((value == 0) | (value == 1)).all()) for value in free)
        return not constant or any(value.way == "random" for value in self.numbers)

    def setup(self) -> list[tuple[str, str | Tensor]]:
        """The assignments that make the layer, its inputs and upstream gradients: names, and expressions or tensors."""
        made = self.part.code().made
        if self.dtype not in (None, torch.float32):
            made += f".to({self.dtype})"
        done: list[tuple[str, str | Tensor]] = [("layer", made if self.training else f"{made}.eval()")]
        tensors = {f"{attribute('layer', name)}.data": value for name, value in self.state.items()}
        tensors |= {name: value for name, value in self.inputs.items() if isinstance(value, Numbers)}
        if self.backward:
            tensors |= {self.upstream_name(index): value for index, value in self.upstream.items()}
        return done + [(name, value.code() or value.values) for name, value in tensors.items()]

    def upstream_name(self, index: int) -> str:
        """The name of the gradient of an output."""
        return "g" if len(self.upstream) == 1 else f"g{index}"

    def turned_on(self) -> list[str]:
        """The lines between the setup and the forward."""
        lines = []
        if self.mode.is_program and self.place[0] in ("parameter", "after"):
            lines.append(f"wanted = {attribute('layer', self.place[1])}")
        lines += self.mode.lines
        if self.mode.device is not None:
            names = ["layer", *(name for name, value in self.inputs.items() if isinstance(value, Numbers))]
            names += [self.upstream_name(index) for index in self.upstream] if self.backward else []
            lines += [f'{name} = {name}.to("{self.mode.device}")' for name in names]
        if self.leaf:
            lines.append(f"{self.leaf}.requires_grad_()")
        return lines

    def forward(self) -> list[str]:
        """The lines that compute ``y``."""
        given = [name if isinstance(value, Numbers) else literal(value) for name, value in self.inputs.items()]
        if self.leaf and self.part.code().writes:  # torch allows no write into a leaf
            given = [f"{name}.clone()" if name == self.leaf else name for name in given]
        given += [f"{key}={literal(value)}" for key, value in self.keywords.items()]
        return within(self.mode.around, [f"y = layer({', '.join(given)})"])

    def backward_lines(self, outputs: Any) -> list[str]:
        """The line of the backward, if there is one, for what the layer returns."""
        pairs = [(_output(outputs, index), self.upstream_name(index)) for index in self.upstream]
        if not self.backward:
            return []
        if len(pairs) == 1:
            y, g = pairs[0]
            return [f"{y}.backward({g})"]
        ys, gs = (", ".join(names) for names in zip(*pairs, strict=True))
        return [f"torch.autograd.backward([{ys}], [{gs}])"]

    def result(self, outputs: Any) -> str:
        """The expression of the result that is wrong."""
        kind, key = self.place
        if kind == "outputs":
            return _output(outputs, key)
        if kind == "grad_inputs":
            return f"{self.leaf}.grad"
        name = "wanted" if self.mode.is_program else attribute("layer", key)
        return name if kind == "after" else f"{name}.grad"


def attribute(module: str, name: str) -> str:
    """The expression of a parameter or buffer: ``layer[0].weight`` for ``0.weight``."""
    return module + "".join(f"[{word}]" if word.isdecimal() else f".{word}" for word in name.split("."))


def _output(outputs: Any, index: int) -> str:
    """The expression of the output with an index among the floating-point ones."""
    if isinstance(outputs, Tensor):
        return "y"
    places = [i for i, y in enumerate(outputs) if isinstance(y, Tensor) and y.is_floating_point()]
    return f"y[{places[index]}]"


def within(context: str, lines: list[str]) -> list[str]:
    """Lines in a context, if there is one."""
    return [f"with {context}:", *(f"    {line}" for line in lines)] if context else lines


# ---- a run


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, the modes of torch and its random numbers may change; no warning is shown."""
    backends: Any = torch.backends
    threads, enabled, tf32 = torch.get_num_threads(), backends.mkldnn.enabled, backends.cudnn.allow_tf32
    on_gpu = range(torch.cuda.device_count())
    with torch.random.fork_rng(on_gpu), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            backends.mkldnn.set_flags(_enabled=enabled)
            backends.cudnn.set_flags(_allow_tf32=tf32)


@dataclass(frozen=True)
class Ran:
    """What a case had before the call: layer, inputs and upstream gradients; what it returned, and its result.

    ``randomness`` is the state of the random generator before the forward, ``draws`` whether the forward changed it.
    """

    layer: nn.Module
    inputs: list[Any]
    upstream: dict[int, Tensor]
    outputs: Any
    found: Tensor | None
    randomness: Tensor
    draws: bool


SEED = "torch.manual_seed(0)"
IMPORTS = ("import torch", "from torch import nn")


def run(case: Case) -> Ran:
    """Run the lines of a case, as the program will; tensors that have no code yet are given.

    Raises:
        Exception: Whatever the lines raise.
    """
    names: dict[str, Any] = {}
    if case.mode.is_program:
        _forget_compiled()
    _execute([*IMPORTS, *case.mode.imports, *case.part.code().before, SEED], names)
    for name, value in case.setup():
        if isinstance(value, Tensor):
            names["given"] = relaid(value, value)
        _execute([f"{name} = {'given' if isinstance(value, Tensor) else value}"], names)
    layer = copy.deepcopy(names["layer"])
    inputs = [names[name].clone() if isinstance(v, Numbers) else v for name, v in case.inputs.items()]
    upstream = {index: names[case.upstream_name(index)] for index in case.upstream} if case.backward else {}
    _execute(case.turned_on(), names)
    randomness = torch.get_rng_state()
    _execute(within(case.mode.around_all, case.forward()), names)
    draws = not torch.equal(randomness, torch.get_rng_state())
    if case.backward:
        _execute(within(case.mode.around_all, case.backward_lines(names["y"])), names)
    found = eval(case.result(names["y"]), names)
    return Ran(layer, inputs, upstream, names["y"], found, randomness, draws)


def _forget_compiled() -> None:
    """Let torch compile again: it compiles the forward of a class for a few modules only."""
    torch.compiler.reset()


def _execute(lines: Iterable[str], names: dict[str, Any]) -> None:
    exec("\n".join(lines), names)


# ---- the file


def text(case: Case, ran: Ran, title: str, where: Sequence[int], right: float, tolerance: float) -> list[str]:
    """The lines of the program.

    Args:
        case: What it runs; every tensor has code.
        ran: Its run.
        title: A sentence that says what is wrong.
        where: The index of the number that it shows.
        right: The right number.
        tolerance: The largest difference from it that is no fault.
    """
    code = case.part.code()
    setup = [f"{name} = {value}" for name, value in case.setup()]
    random = ran.draws or case.is_random(ran.layer)
    index = f"[{', '.join(map(str, where))}]" if where else ""
    result = case.result(ran.outputs)
    found = f"{result}{index}.item()"
    if ran.found is None:  # no gradient counts as zeros
        found = f"0.0 if {result} is None else {found}"
    lines = [
        f'"""{title}"""',
        "",
        "import sys",
        "",
        *IMPORTS,
        *case.mode.imports,
        *(("", *code.before, "") if code.before else ("",)),
        *((SEED,) if random else ()),
        *setup,
        *case.turned_on(),
        *within(case.mode.around_all, case.forward() + case.backward_lines(ran.outputs)),
        f"found = {found}",
        f"expected = {_number(right)}",
        'print(f"expected {expected}, found {found}")',
        f"sys.exit(0 if {_test(right, tolerance)} else 1)",
    ]
    return [part for line in lines for part in _wrapped(line)]


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(f"{value:.12g}"))
    return f"float('{value}')"


def _test(right: float, tolerance: float) -> str:
    if math.isnan(right):
        return "found != found"
    return f"abs(found - expected) <= {tolerance:.0e}" if math.isfinite(right) else "found == expected"


def _wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(
        line,
        WIDTH,
        subsequent_indent=indent,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def exit_code(lines: Sequence[str]) -> int | None:
    """What a program with these lines exits with; None where it fails in another way."""
    if any("torch.compile" in line for line in lines):
        _forget_compiled()
    try:
        with undisturbed(), contextlib.redirect_stdout(io.StringIO()):
            exec("\n".join(lines), {"__name__": "__main__"})
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else None
    except Exception:
        return None
    return 0
