"""One recorded call of a layer, computed again alone: by another class, in another precision, at other inputs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.aten import numpy_ops
from cnn_lightning.ops.fast import chooser
from cnn_lightning.swap import native_type
from cnn_lightning.tools import judge
from cnn_lightning.tools.elementary import Elementary
from cnn_lightning.tools.parity.layerwise.distance import relative_error
from cnn_lightning.tools.parity.layerwise.runner import Call, float_tensors, is_gradient, weights_of

OWN_ROUNDING = 10.0
"""An error is a fault where it is more than this many times the error that rounding causes."""

_MOST = 2**29
"""The bytes of replays that are kept."""


@dataclass
class Alone:
    """The results of a layer for a recorded call."""

    outputs: list[Tensor]
    after: dict[str, Tensor]
    """The buffers after the call."""
    gradients: dict[Any, Tensor | None]
    """Of the inputs by their index, of the parameters by their name."""

    def get(self, kind: str, key: Any) -> Tensor | None:
        """The result at a place (see `runner.Place`), or None."""
        if is_gradient((kind, key)):
            return self.gradients.get(key)
        found: Tensor = getattr(self, kind)[key]
        return found


class Replay:
    """A recorded call, computed again by the class ``kind`` in ``dtype``, at any inputs and parameters.

    With ``contiguous``, inputs and upstream gradients are made contiguous; otherwise they keep their strides. With
    ``formulas``, every operation is computed by its formula, none by a fast function; with ``functions``, NumPy
    computes torch's own operators; with ``elementary``, elementary operations compute them, and `independent` says
    whether all of them.
    """

    def __init__(
        self,
        call: Call,
        kind: type[nn.Module],
        dtype: torch.dtype,
        *,
        contiguous: bool = False,
        formulas: bool = False,
        functions: bool = False,
        elementary: bool = False,
    ) -> None:
        self.call, self.kind, self.dtype, self.contiguous, self.formulas = call, kind, dtype, contiguous, formulas
        self.functions = functions
        self._elementary = Elementary() if elementary else None
        self.point: dict[Any, Tensor] = {
            index: self._cast(value)
            for index, value in enumerate(call.arguments)
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        device = next((value.device for value in call.arguments if isinstance(value, Tensor)), None)
        self.point |= {key: self._cast(value.detach().to(device)) for key, value in weights_of(call.module).items()}
        self.upstream = {index: self._cast(gradient) for index, gradient in call.grad_outputs.items()}
        self.alone = self.run()

    def _cast(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        value = value.to(self.dtype)
        return value.contiguous() if self.contiguous else value

    def forward(self, point: judge.Point) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The outputs, and the buffers after the call."""
        call, source = self.call, self.call.module
        module = bare(source, self.kind, {key: point[key] for key in weights_of(source)})
        module.__dict__["training"] = call.training
        module._buffers = {
            key: None if value is None else self._cast(call.buffers[key]).clone()
            for key, value in source._buffers.items()
        }
        # An in-place layer must write neither into the point nor into a leaf.
        given = [point[i].clone() if i in point else value for i, value in enumerate(call.arguments)]
        on_gpu = len(call.randomness) > 1
        with torch.random.fork_rng([torch.cuda.current_device()] if on_gpu else []):
            torch.set_rng_state(call.randomness[0])
            if on_gpu:
                torch.cuda.set_rng_state(call.randomness[1])
            outputs = float_tensors(module(*given, **call.keywords))
        return outputs, {key: value for key, value in module._buffers.items() if value is not None}

    def run(self, point: judge.Point | None = None, upstream: Mapping[int, Tensor] | None = None) -> Alone:
        """Forward and backward."""
        leaves = {key: x.clone().requires_grad_() for key, x in (self.point if point is None else point).items()}
        with torch.enable_grad(), self._tier():
            outputs, after = self.forward(leaves)
        upstream = self.upstream if upstream is None else upstream
        reached = [(y, upstream[index]) for index, y in enumerate(outputs) if index in upstream and y.requires_grad]
        found: Sequence[Tensor | None] = ()
        if reached and leaves:
            ys, gradients = zip(*reached, strict=True)
            with self._tier():
                found = torch.autograd.grad(ys, list(leaves.values()), gradients, allow_unused=True)
        return Alone([y.detach() for y in outputs], after, dict(zip(leaves, found, strict=False)))

    @contextmanager
    def _tier(self) -> Iterator[None]:
        with (
            chooser.fast(False) if self.formulas else nullcontext(),
            numpy_ops(self.functions),
            self._elementary or nullcontext(),
        ):
            yield

    @property
    def independent(self) -> bool:
        """Whether elementary operations computed every operator."""
        return self._elementary is not None and self._elementary.is_independent

    @property
    def size(self) -> int:
        """The bytes of its tensors."""
        alone = self.alone
        tensors = [*self.point.values(), *self.upstream.values(), *alone.outputs, *alone.gradients.values()]
        return sum(x.nbytes for x in tensors if x is not None)

    def party(self) -> judge.Party:
        """For the judge of a backward."""
        upstream = [self.upstream.get(index) for index in range(len(self.alone.outputs))]
        return judge.Party(
            self.point,
            upstream,
            lambda point: self.forward(point)[0],
            lambda point: self.alone.gradients if point is self.point else self.run(point).gradients,
        )


class Replays:
    """The replays of a step's calls; each is computed once, but for large ones, of which the oldest are dropped."""

    def __init__(self) -> None:
        self._kept: dict[Any, Replay | None] = {}
        self._bytes = 0

    def clear(self) -> None:
        """Forget the last step."""
        self._kept.clear()
        self._bytes = 0

    def get(self, call: Call, kind: type[nn.Module], dtype: torch.dtype, **options: bool) -> Replay | None:
        """The call by ``kind`` in ``dtype``, with options of `Replay`; None where the layer does not run so."""
        key = (id(call), kind, dtype, *sorted(options.items()))
        if key not in self._kept:
            try:
                self._kept[key] = replay = Replay(call, kind, dtype, **options)
            except Exception:  # a user's layer, in another precision, may raise anything
                self._kept[key] = None
                return None
            self._bytes += replay.size
            while self._bytes > _MOST and len(self._kept) > 2:  # two are compared with each other
                oldest = self._kept.pop(next(iter(self._kept)))
                self._bytes -= 0 if oldest is None else oldest.size
        return self._kept[key]


def bare(module: nn.Module, kind: type[nn.Module], parameters: Mapping[str, Tensor | None]) -> Any:
    """The module as one of class ``kind``, without hooks, with other parameters; its buffers are the module's own.

    ``parameters`` has dotted names. The modules in it are torch's if ``kind`` is torch's.
    """
    copied: Any = object.__new__(kind)
    copied.__dict__ = dict(module.__dict__) | {"_backward_hooks": {}}
    for key in [key for key in copied.__dict__ if key.endswith(("_hooks", "_hooks_with_kwargs"))]:
        copied.__dict__[key] = type(module.__dict__[key])() if key in module.__dict__ else {}
    copied._parameters = {key: parameters.get(key) for key in module._parameters}
    copied._modules = {}
    for name, child in module.named_children():
        within = {key.removeprefix(f"{name}."): p for key, p in parameters.items() if key.startswith(f"{name}.")}
        of_torch = kind is native_type(module)
        copied._modules[name] = bare(child, native_type(child) if of_torch else type(child), within)
    return copied


def alone(call: Call, kind: type[nn.Module]) -> nn.Module:
    """The layer of a call, of class ``kind``, as it was before the call; it shares nothing with the network."""
    source = call.module
    weights = {key: nn.Parameter(value.detach().cpu().clone()) for key, value in weights_of(source).items()}
    module: nn.Module = bare(source, kind, weights)
    module._buffers = {key: None if x is None else call.buffers[key].cpu() for key, x in source._buffers.items()}
    return module.train(call.training)


def amplified(replay: Replay | None, kind: str, key: Any, floor: float, coarse: torch.dtype) -> float:
    """The relative error of the exact result when the inputs are rounded to ``coarse``; 0 where there is no result.

    Equal numbers stay equal for a gradient, which may jump at a tie. An output does not, and may be 0 only because of
    equal numbers: there each number is rounded by itself.
    """
    exact = None if replay is None else replay.alone.get(kind, key)
    if replay is None or exact is None:
        return 0.0
    worst = 0.0
    change = moved_apart if kind in ("outputs", "after") else rounded
    for seed in (1, 2):
        point = {name: change(x, seed, coarse) for name, x in replay.point.items()}
        upstream = {index: rounded(x, seed, coarse) for index, x in replay.upstream.items()}
        moved = replay.run(point, upstream).get(kind, key)
        worst = max(worst, 0.0 if moved is None else relative_error(moved, exact, floor)[0])
    return worst


def moved_apart(x: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
    """`rounded`, but equal numbers don't stay equal."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).clamp_(-1, 1).to(x)
    return x.detach().clone().addcmul_(noise, x, value=torch.finfo(dtype).eps)


def rounded(x: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
    """``x`` with each number changed by up to the rounding of ``dtype``; equal numbers stay equal, strides stay."""
    noise = torch.cos(x * 12345678.9 + seed)
    return x.detach().clone().addcmul_(noise, x, value=torch.finfo(dtype).eps)
