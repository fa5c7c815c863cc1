"""What can be compared with torch eager: modes of torch, programs made from a network, and layers.

A *mode* runs the network layer by layer, as torch eager does, but in another memory format, precision or number of
threads, on another device, or by other layers. A *program* is a network that was compiled or exported: it is compared
as a whole first.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import DropBlock2d, StochasticDepth

from cnn_lightning.layers.memory import MemoryFormat
from cnn_lightning.model import LARGEST
from cnn_lightning.ops.fast import chooser
from cnn_lightning.swap import Spec, native_type
from cnn_lightning.tools.parity.candidates import builds
from cnn_lightning.train.suggestions import did_you_mean

Around = Callable[[], AbstractContextManager[Any]]
Build = Callable[[nn.Module, tuple[Any, ...]], Callable[..., Any]]
"""Makes a program from a module and an example of its inputs. What it returns uses the module's own parameters."""


@dataclass(frozen=True)
class Candidate:
    """What is compared with torch eager.

    Attributes:
        name: As `candidate_of` takes it.
        layers: What runs the layers, as for `swap_layers`.
        around: The context in which the forward and backward run.
        autocast: The precision of ``torch.autocast`` around the forward; None for none.
        memory_format: Of the batches, and with channels_last of the weights too; "auto" is that of the batches.
        device: Of the network and the batches; None for that of the batches.
        draws_alike: Whether dropout draws the same random numbers as torch eager's. If not, all copies run without it.
        build: Makes a program; None for a mode.
        trains: Whether the program has gradients; if not, it is compared in evaluation, and forward only.
        code: Lines that turn this on in a program with a module ``layer`` and its input ``x``, for a reproducer.
    """

    name: str
    layers: Spec = "torch"
    around: Around = nullcontext
    autocast: torch.dtype | None = None
    memory_format: MemoryFormat = "auto"
    device: str | None = None
    draws_alike: bool = True
    build: Build | None = None
    trains: bool = True
    code: tuple[str, ...] = field(default=())

    @property
    def kind(self) -> Literal["mode", "program"]:
        """How it is compared: layer by layer, or as a whole first."""
        return "mode" if self.build is None else "program"


EAGER = Candidate("torch")
"""torch eager, as it runs by default."""


def candidate_of(text: str, net: nn.Module) -> Candidate:
    """The candidate of a name such as ``channels_last``, ``threads=1`` or ``my_package.MyLayer``, for a network.

    Raises:
        ValueError: An unknown name, or one that this machine or network does not have.
    """
    name, equals, value = text.partition("=")
    if name == "threads":
        return _threads(text, value)
    if name == "compile" and bool(equals) == bool(value):
        return compiled(value or "inductor", text)
    if equals or (name not in MODES and "." not in name):
        known = [*MODES, "threads=N", "compile=BACKEND", "package.module.Layer"]
        raise ValueError(f"against: expected one of {', '.join(known)}, got {text!r}{did_you_mean(name, known)}")
    if name not in MODES:
        return Candidate(text, layers=_layers(text, net))
    if name == "onnx":
        builds.expect_onnx()
    found = MODES[name]
    if found.device is not None and not getattr(torch, found.device).is_available():
        raise ValueError(f"against: expected a device of this machine, got {text}, which torch does not see here")
    return found


def compiled(backend: builds.Backend, name: str = "compile") -> Candidate:
    """``torch.compile`` with a backend: one of torch's by its name, or any function that ``torch.compile`` takes.

    Raises:
        ValueError: An unknown name.
    """
    option = "" if backend == "inductor" else f', backend="{backend}"'
    code = (f"layer = torch.compile(layer{option})",) if isinstance(backend, str) else ()
    return Candidate(name, draws_alike=False, build=builds.compiled(backend), code=code)


def without_dropout(net: nn.Module) -> bool:
    """Turn off what draws random numbers in training, in place; return whether there was any.

    These are dropout, stochastic depth and RReLU.
    """
    found = False
    for module in net.modules():
        if isinstance(module, (_DropoutNd, nn.RReLU, StochasticDepth, DropBlock2d)):
            found |= module.training and getattr(module, "p", 1) > 0
            module.eval()
        if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            found |= module.training and module.dropout > 0
            module.dropout = 0.0
    return found


def _layers(text: str, net: nn.Module) -> Spec:
    """The class at an import path for each layer of its native type."""
    home, _, name = text.rpartition(".")
    try:
        kind = getattr(importlib.import_module(home), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"against: expected the import path of a layer, got {text}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"against: expected a subclass of torch.nn.Module, got {text}, a {type(kind).__name__}")
    names = [name for name, module in net.named_modules() if issubclass(kind, native_type(module))]
    names = [name for name in names if native_type(net.get_submodule(name)) is not nn.Module]
    if not names:
        raise ValueError(f"against: expected a layer that {text} can replace in the network, found none")
    return dict.fromkeys(names, kind)


def _threads(text: str, value: str) -> Candidate:
    if not value.isdecimal() or not 1 <= int(value) <= LARGEST:
        raise ValueError(f"against: expected threads=N with a whole number of at least 1, got {text!r}")
    number = int(value)

    @contextmanager
    def threads() -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return Candidate(text, around=threads, code=(f"torch.set_num_threads({number})",))


@contextmanager
def _no_mkldnn() -> Iterator[None]:
    before, *_ = torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before)  # type: ignore[no-untyped-call]


MODES = {
    each.name: each
    for each in (
        Candidate(
            "channels_last",
            memory_format="channels_last",
            draws_alike=False,
            code=("layer = layer.to(memory_format=torch.channels_last)",),
        ),
        Candidate("bf16", autocast=torch.bfloat16),
        Candidate("fp16", autocast=torch.float16),
        Candidate("no_mkldnn", around=_no_mkldnn, code=("torch.backends.mkldnn.set_flags(_enabled=False)",)),
        Candidate("cuda", device="cuda", draws_alike=False),
        Candidate("mps", device="mps", draws_alike=False),
        Candidate("formula", layers="numpy", around=lambda: chooser.fast(False)),
        Candidate("fast", layers="numpy", around=lambda: chooser.fast(True)),
        Candidate(
            "pt2",
            draws_alike=False,
            build=builds.exported,
            code=("layer = torch.export.export(layer, (x,)).module()",),
        ),
        Candidate("onnx", draws_alike=False, build=builds.run_by_onnx, trains=False, code=builds.ONNX),
    )
}
