"""A copy of the network that trains: its loss and optimizer, and a record of every call of its layers."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.aten import Report, numpy_ops
from cnn_lightning.layers.memory import arranged
from cnn_lightning.model import total_loss
from cnn_lightning.swap import LAYERS, Spec, native_type, swap_layers
from cnn_lightning.tools.parity.candidates import EAGER, Candidate
from cnn_lightning.tools.parity.layerwise.functions import FunctionCall, Functions, InNumPyCall

Batch = tuple[Tensor, Tensor]
"""Images and targets."""
Place = tuple[str, Any]
"""One result of a call: its kind (``outputs``, ``after``, ``grad_inputs`` or ``parameter``), and its index or name."""


def is_gradient(place: Place) -> bool:
    """Whether a result is a gradient."""
    return place[0] in ("grad_inputs", "parameter")


SCALES = (1024.0, 64.0, 4.0, 1.0)
"""Factors of the loss in float16, so that small gradients don't become zero; gradients are divided by it."""

Tick = Callable[[str], None]
"""Called with what was done, for a progress bar."""


@dataclass(frozen=True)
class Training:
    """The steps that all copies take: see `lockstep.compare`."""

    batches: Sequence[Batch]
    loss: nn.Module
    dtype: torch.dtype
    tolerance: float | None
    lr: float
    momentum: float
    seed: int
    tick: Tick


@dataclass
class Call:
    """The arguments and results of one call of a layer."""

    name: str
    index: int
    module: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    buffers: dict[str, Tensor]
    randomness: list[Tensor]
    """The state of torch's random generator before the call; on a GPU that of the GPU too."""
    training: bool
    outputs: list[Tensor] = field(default_factory=list)
    after: dict[str, Tensor] = field(default_factory=dict)
    """The buffers after the call."""
    grad_outputs: dict[int, Tensor] = field(default_factory=dict)
    grad_inputs: dict[int, Tensor] = field(default_factory=dict)


class Runner:
    """A copy of the network with its loss and optimizer; the calls of each leaf module are recorded in order.

    With ``functions``, NumPy computes torch's own operators, too; ``ran`` counts them. With ``mode``, the copy runs as
    this candidate does. With ``everything``, the functions that containers call are recorded, too, and computed in
    NumPy if the layers are. Everything is recorded on the device of the batch.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Spec,
        loss: nn.Module,
        dtype: torch.dtype,
        lr: float,
        momentum: float,
        *,
        watch: bool = True,
        functions: bool = False,
        mode: Candidate = EAGER,
        everything: bool = False,
    ) -> None:
        self.net, self.loss = (copy.deepcopy(module).to(mode.device, dtype) for module in (net, loss))
        swap_layers(self.net, "torch", beside={"loss": self.loss})
        self.report = swap_layers(self.net, layers, beside={"loss": self.loss})
        if mode.memory_format == "channels_last":
            self.net.to(memory_format=torch.channels_last)
        self.dtype, self.functions, self.ran, self.mode = dtype, functions, Report(), mode
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=lr, momentum=momentum) if trained else None
        self.calls: list[Call] = []
        self.changed: set[int] = set()
        """The ids of the parameters that changed between two steps of the optimizer."""
        self._prints = self._fingerprints()
        self._everything, self._in_numpy = everything, layers == "numpy"
        self._running: list[str] = []
        """The modules that run now, the innermost last."""
        self._in_layer = False
        self._scale = 1.0
        for name, module in self.named() if watch else ():
            if is_layer(module) if everything else next(module.children(), None) is None:
                module.register_forward_pre_hook(self._before(name), with_kwargs=True)
                module.register_forward_hook(self._after)
            elif everything:
                module.register_forward_pre_hook(self._entered(name))
                module.register_forward_hook(self._left)

    @classmethod
    def of(cls, net: nn.Module, layers: Spec, training: Training, dtype: torch.dtype, **options: Any) -> "Runner":
        """The copy that takes the steps of ``training``, with a record of everything."""
        return cls(net, layers, training.loss, dtype, training.lr, training.momentum, everything=True, **options)

    @property
    def rounds(self) -> torch.dtype:
        """The coarsest format in which results are rounded."""
        return self.mode.autocast or self.dtype

    def named(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules of the network, and those of the loss after them."""
        yield from self.net.named_modules()
        yield from self.loss.named_modules(prefix="loss")

    def differs(self, module: nn.Module) -> bool:
        """Whether a layer is computed in another way than by torch alone."""
        is_torchs = type(module).__module__.startswith(("torch.", "torchvision."))
        by_functions = self.functions and is_torchs and next(module.children(), None) is None
        return type(module) is not native_type(module) or by_functions

    def backward(self, batch: Batch, seed: int) -> float:
        """Run forward and backward; return the loss.

        In float16 the loss is scaled by the largest of `SCALES` with which no gradient overflows, as a gradient scaler
        does.
        """
        before = [(buffer, buffer.clone()) for buffer in self.net.buffers()]
        for scale in SCALES if self.mode.autocast == torch.float16 else (1.0,):
            self._scale = scale
            for buffer, value in before:
                buffer.copy_(value)
            loss = self._backward(batch, seed)
            gradients = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
            if scale == 1 or all(gradient.isfinite().all() for gradient in gradients):
                break
        return loss

    def _backward(self, batch: Batch, seed: int) -> float:
        self.calls.clear()
        self.net.zero_grad()
        torch.manual_seed(seed)
        self._running, self._in_layer = [], False
        images, target = (value.to(self.mode.device or value.device) for value in batch)
        if target.is_floating_point():
            target = target.to(self.dtype)
        # The first layer's input gradient is compared too. That layer may write into its input, which torch forbids for
        # a leaf: so it gets the product with 1.
        images = images.detach().to(self.dtype, copy=True)
        if self.mode.memory_format != "auto":
            images = arranged(images, self.mode.memory_format)
        images = images.requires_grad_() * 1
        with numpy_ops(self.functions) as report, self.mode.around():
            with self._autocast(images.device), self._functions():
                value, _ = total_loss(self.net, self.loss, self.net(images), target)
            (value * self._scale).backward()  # type: ignore[no-untyped-call]
        for parameter in self.net.parameters():
            if parameter.grad is not None and self._scale != 1:
                parameter.grad /= self._scale
        self.ran.add(report)
        return value.item()

    def _autocast(self, device: torch.device) -> Any:
        kind = self.mode.autocast
        return nullcontext() if kind is None else torch.autocast(device.type, kind)

    def _functions(self) -> Any:
        if not self._everything:
            return nullcontext()
        kind = InNumPyCall if self._in_numpy else FunctionCall
        return Functions(self._function, lambda: not self._in_layer, kind)

    def update(self) -> None:
        """One step of the optimizer."""
        prints = self._fingerprints()
        self.changed = {key for key, value in prints.items() if value != self._prints[key]}
        if self.optimizer is not None:
            self.optimizer.step()
        self._prints = self._fingerprints()

    def users(self, call: Call, place: Place) -> list[tuple[Call, Any]]:
        """The calls that compute a result, each with the result's name there: for a parameter all calls that use it."""
        kind, key = place
        if kind != "parameter":
            return [(call, key)]
        parameter = weights_of(call.module)[key]
        return [
            (other, name)
            for other in self.calls
            for name, value in weights_of(other.module).items()
            if value is parameter
        ]

    def _fingerprints(self) -> dict[int, int]:
        return {id(parameter): _fingerprint(parameter) for parameter in self.net.parameters()}

    def _before(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            given = self._begin(name, module, arguments, keywords), keywords
            self._in_layer = True
            return given

        return hook

    def _after(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._in_layer = False
        self._end(next(call for call in reversed(self.calls) if call.module is module and not call.outputs), output)

    def _entered(self, name: str) -> Callable[..., None]:
        return lambda module, arguments: self._running.append(name)

    def _left(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._running.pop()

    def _function(self, name: str, function: FunctionCall, tensors: list[Tensor]) -> Any:
        """Run and record a function that the innermost module calls; the loss calls what no module does."""
        place = self._running[-1] if self._running else "loss"
        given = self._begin(f"{place}:{name}" if place else name, function, tuple(tensors), {})
        call = self.calls[-1]
        output = function.forward(*given)
        self._end(call, output)
        return output

    def _begin(
        self, name: str, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Record that a layer begins; return its arguments, whose gradients are from this layer alone."""
        call = Call(
            name,
            sum(other.name == name for other in self.calls),
            module,
            tuple(self.copied(value) for value in arguments),
            keywords,
            {key: self.copied(value) for key, value in module.named_buffers()},
            _randomness(arguments),
            module.training,
        )
        self.calls.append(call)
        given = []
        for index, value in enumerate(arguments):
            if isinstance(value, Tensor) and value.requires_grad:
                if index or not getattr(module, "inplace", False):
                    value = value.clone()  # others may read it, too
                value.register_hook(self._keep(call.grad_inputs, index))  # type: ignore[no-untyped-call]
            given.append(value)
        return tuple(given)

    def _end(self, call: Call, output: Any) -> None:
        """Record what a layer returns, and its gradients when they come."""
        for index, value in enumerate(float_tensors(output)):
            call.outputs.append(self.copied(value))
            if value.requires_grad:
                value.register_hook(self._keep(call.grad_outputs, index))  # type: ignore[no-untyped-call]
        call.after = {key: self.copied(value) for key, value in call.module.named_buffers()}

    def copied(self, value: Any) -> Any:
        """A copy of a tensor, on the device of the batch; any other value itself."""
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone() if self.mode.device is None else value.detach().to("cpu", copy=True)

    def gradient(self, parameter: Tensor) -> Tensor | None:
        """The gradient of a parameter, on the device of the batch."""
        return parameter.grad if parameter.grad is None or self.mode.device is None else parameter.grad.cpu()

    def _keep(self, place: dict[int, Tensor], index: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            found = self.copied(gradient)
            place[index] = found if self._scale == 1 else found.float() / self._scale

        return hook


def is_layer(module: nn.Module) -> bool:
    """Whether a module is compared as a whole: one of torch or torchvision without children, or one with a NumPy layer.

    Any other module is a container, of which the functions that it calls itself are compared.
    """
    native = native_type(module)
    alone = next(module.children(), None) is None
    return native in LAYERS or (alone and native.__module__.startswith(("torch.", "torchvision.")))


def weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a layer and of the modules in it (attention has one), by their dotted names."""
    return dict(module.named_parameters(remove_duplicate=False))


def float_tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors among the results of a module."""
    values = output if isinstance(output, (tuple, list)) else (output,)
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def _fingerprint(x: Tensor) -> int:
    """The sum of the bits of ``x`` as integers: it shows a change that a sum of floats would round away."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(x.element_size(), torch.uint8)
    return int(x.detach().contiguous().view(kind).sum(dtype=torch.int64))


def _randomness(values: Iterable[Any]) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if any(isinstance(value, Tensor) and value.is_cuda for value in values):
        states.append(torch.cuda.get_rng_state())
    return states
