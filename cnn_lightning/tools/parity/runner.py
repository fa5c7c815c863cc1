"""A copy of the network that trains: its loss and optimizer, and a record of every call of its layers."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.aten import Report, numpy_ops
from cnn_lightning.model import total_loss
from cnn_lightning.swap import Spec, native_type, swap_layers

Batch = tuple[Tensor, Tensor]
"""Images and targets."""
Place = tuple[str, Any]
"""One result of a call: its kind (``outputs``, ``after``, ``grad_inputs`` or ``parameter``), and its index or name."""


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

    With ``functions``, NumPy computes torch's own operators, too; ``ran`` counts them.
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
    ) -> None:
        self.net, self.loss = copy.deepcopy(net).to(dtype), copy.deepcopy(loss).to(dtype)
        swap_layers(self.net, "torch", beside={"loss": self.loss})
        self.report = swap_layers(self.net, layers, beside={"loss": self.loss})
        self.dtype, self.functions, self.ran = dtype, functions, Report()
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=lr, momentum=momentum) if trained else None
        self.calls: list[Call] = []
        self.changed: set[int] = set()
        """The ids of the parameters that changed between two steps of the optimizer."""
        self._prints = self._fingerprints()
        for name, module in self.named() if watch else ():
            if next(module.children(), None) is None:
                module.register_forward_pre_hook(self._before(name), with_kwargs=True)
                module.register_forward_hook(self._after)

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
        """Run forward and backward; return the loss."""
        self.calls.clear()
        self.net.zero_grad()
        torch.manual_seed(seed)
        images, target = batch
        if target.is_floating_point():
            target = target.to(self.dtype)
        # The first layer's input gradient is compared too. That layer may write into its input, which torch forbids for
        # a leaf: so it gets the product with 1.
        images = images.detach().to(self.dtype, copy=True).requires_grad_() * 1
        with numpy_ops(self.functions) as report:
            value, _ = total_loss(self.net, self.loss, self.net(images), target)
            value.backward()  # type: ignore[no-untyped-call]
        self.ran.add(report)
        return value.item()

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
        parameter = call.module._parameters[key]
        return [
            (other, name)
            for other in self.calls
            for name, value in other.module._parameters.items()
            if value is parameter
        ]

    def _fingerprints(self) -> dict[int, int]:
        return {id(parameter): _fingerprint(parameter) for parameter in self.net.parameters()}

    def _before(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            call = Call(
                name,
                sum(other.name == name for other in self.calls),
                module,
                tuple(_copied(value) for value in arguments),
                keywords,
                {key: value.clone() for key, value in module.named_buffers()},
                _randomness(arguments),
                module.training,
            )
            self.calls.append(call)
            given = []
            for index, value in enumerate(arguments):
                if isinstance(value, Tensor) and value.requires_grad:
                    if not getattr(module, "inplace", False):
                        value = value.clone()  # then its gradient is from this layer alone, if others read it too
                    value.register_hook(_keep(call.grad_inputs, index))  # type: ignore[no-untyped-call]
                given.append(value)
            return tuple(given), keywords

        return hook

    def _after(self, module: nn.Module, arguments: Any, output: Any) -> None:
        call = next(call for call in reversed(self.calls) if call.module is module and not call.outputs)
        for index, value in enumerate(float_tensors(output)):
            call.outputs.append(value.detach().clone())
            if value.requires_grad:
                value.register_hook(_keep(call.grad_outputs, index))  # type: ignore[no-untyped-call]
        call.after = {key: value.clone() for key, value in module.named_buffers()}


def float_tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors among the results of a module."""
    values = output if isinstance(output, (tuple, list)) else (output,)
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def _keep(place: dict[int, Tensor], index: int) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        place[index] = gradient.detach().clone()

    return hook


def _fingerprint(x: Tensor) -> int:
    """The sum of the bits of ``x`` as integers: it shows a change that a sum of floats would round away."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(x.element_size(), torch.uint8)
    return int(x.detach().contiguous().view(kind).sum(dtype=torch.int64))


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _randomness(values: Iterable[Any]) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if any(isinstance(value, Tensor) and value.is_cuda for value in values):
        states.append(torch.cuda.get_rng_state())
    return states
