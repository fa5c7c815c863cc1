"""The networks: `SimpleCNN`, and every classification network of torchvision, or of timm, by name.

All are in plain ``torch.nn``; `cnn_lightning.swap` chooses the implementation of their layers.
"""

import difflib
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnn_lightning import timm_networks
from cnn_lightning.layers import fused

AUXILIARY = {"googlenet": (0.3, 0.3), "inception_v3": (0.4,)}
"""The weights of the auxiliary heads' losses, in the order of their outputs.

GoogLeNet: section 5 of Szegedy et al., "Going deeper with convolutions", CVPR 2015, https://arxiv.org/abs/1409.4842.
Inception v3: "Rethinking the Inception architecture", https://arxiv.org/abs/1512.00567, gives no number; 0.4 is what
TF-Slim's network definition and torchvision's reference training (references/classification) use.
"""


class SimpleCNN(fused.Sequential):
    """Convolution 3x3, ReLU and max-pool 2x2 for each of ``channels``; then linear, ReLU, linear.

    The layers are ``conv1 relu1 pool1 conv2 relu2 pool2 ... flatten linear1 relu3 linear2``.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        image_size: height and width of the images; each pooling halves them, rounding down.
        num_classes: the number of outputs.
        channels: the output channels of each convolution.
        hidden: outputs of the first linear layer.

    Raises:
        ValueError: a number below 1, no channels, or an image that the poolings shrink to nothing.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        channels: Sequence[int] = (16, 32),
        hidden: int = 128,
    ) -> None:
        super().__init__()
        _positive(in_channels=in_channels, image_size=image_size, num_classes=num_classes, hidden=hidden)
        if isinstance(channels, str) or not isinstance(channels, Iterable) or not len(list(channels)):
            raise ValueError(f"channels: expected at least one number of channels, such as (16, 32), got {channels!r}")
        for width in channels:
            _positive(channels=width)
        least = 2 ** len(channels)
        if image_size < least:
            raise ValueError(
                f"image_size: expected at least {least} for {len(channels)} poolings by 2, got {image_size}"
            )
        for index, (before, after) in enumerate(zip([in_channels, *channels], channels, strict=False), 1):
            self.add_module(f"conv{index}", nn.Conv2d(before, after, kernel_size=3, padding=1))
            self.add_module(f"relu{index}", nn.ReLU())
            self.add_module(f"pool{index}", nn.MaxPool2d(2))
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(channels[-1] * (image_size // least) ** 2, hidden)
        self.add_module(f"relu{len(channels) + 1}", nn.ReLU())
        self.linear2 = nn.Linear(hidden, num_classes)

    def __prepare_scriptable__(self) -> nn.Module:
        """The same layers in an `nn.Sequential`, which ``torch.jit.script`` can compile."""
        return nn.Sequential(OrderedDict(self.named_children())).train(self.training)


def build_net(
    name: str = "simple_cnn",
    *,
    num_classes: int = 10,
    in_channels: int | None = None,
    image_size: int | None = None,
    channels: Sequence[int] = (16, 32),
    hidden: int = 128,
    weights: str | None = None,
) -> nn.Module:
    """Build ``simple_cnn``, or a classification network of torchvision or timm.

    Args:
        name: one of `net_names`, or ``timm/`` and a name that timm lists, in upper or lower case, also with ``-`` for
            ``_``.
        num_classes: the number of outputs; the head of a pretrained network with another number is replaced.
        in_channels: 1 for SimpleCNN and 3 for the others by default; for any other number the first convolution is
            replaced. Its pretrained weights are summed over the colours, or repeated and scaled.
        image_size: of the images; None is 28 for SimpleCNN, and not checked for the others.
        channels: the output channels of each of SimpleCNN's convolutions.
        hidden: outputs of SimpleCNN's first linear layer.
        weights: torchvision's or timm's pretrained weights by name, such as ``"DEFAULT"``.

    Returns:
        The network. Its attribute ``auxiliary_weights`` contains the loss weights of the auxiliary outputs that it has
        in training (see `total_loss`). Inception v3 has no auxiliary head if the images are too small for it.

    Raises:
        ValueError: an unknown name, unknown weights, a number below 1, or images too small for the network.
        OSError: pretrained weights that can't be fetched.
    """
    name = _resolve(name)
    _positive(num_classes=num_classes)
    for key, value in (("in_channels", in_channels), ("image_size", image_size)):
        if value is not None:
            _positive(**{key: value})
    if name == "simple_cnn":
        if weights is not None:
            raise ValueError(f"weights: there are no pretrained ones for simple_cnn, got {weights!r}")
        return SimpleCNN(in_channels or 1, image_size or 28, num_classes, channels, hidden)
    if name.startswith(timm_networks.PREFIX):
        return timm_networks.build(name, num_classes, in_channels or 3, image_size, weights)
    options = {} if image_size is None else _options(name, image_size)
    net = _fresh(name, num_classes, options) if weights is None else _pretrained(name, num_classes, weights, options)
    if in_channels is not None and in_channels != 3:
        _replace_first_convolution(net, in_channels, pretrained=weights is not None)
    auxiliary = AUXILIARY.get(name, ()) if getattr(net, "aux_logits", False) else ()
    net.auxiliary_weights = auxiliary  # type: ignore[assignment]
    return net


@cache
def net_names() -> list[str]:
    """The names `build_net` knows: ``simple_cnn`` and torchvision's classification networks."""
    return ["simple_cnn", *torchvision.models.list_models(module=torchvision.models)]


def total_loss(
    net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], outputs: Any, target: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss to train with, and the logits of the main head.

    Outputs of a network with auxiliary heads are weighted by its ``auxiliary_weights``: ``loss(main) + w1 loss(aux1) +
    ...``. A plain tensor is the main head's logits.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, target), outputs
    logits, *auxiliary = outputs
    total = loss(logits, target)
    weights: Sequence[float] = getattr(net, "auxiliary_weights", ())
    for weight, other in zip(weights, auxiliary, strict=False):
        if other is not None:
            total = total + weight * loss(other, target)
    return total, logits


def heads(outputs: Any) -> list[Tensor]:
    """The logits of all heads in a network's outputs, the main one first."""
    return [outputs] if isinstance(outputs, Tensor) else [head for head in outputs if isinstance(head, Tensor)]


def net_of(module: nn.Module) -> nn.Module:
    """The network of a LightningModule, its attribute ``net`` or itself, by whose names messages name the layers."""
    net = getattr(module, "net", module)
    assert isinstance(net, nn.Module)
    return net


def last_layers(net: nn.Module) -> list[nn.Module]:
    """The layers whose outputs are the logits: those that a network of timm names, or the last one with weights."""
    get_classifier: Any = getattr(net, "get_classifier", tuple)
    named = get_classifier()
    found: list[nn.Module] = [
        each for each in (named if isinstance(named, tuple) else (named,)) if list(each.parameters())
    ]
    *_, last = (module for module in net.modules() if list(module.parameters(recurse=False)))
    return found or [last]


@cache
def least_image_size(name: str) -> int:
    """The size of the smallest square images on which the network can be trained, by trying sizes.

    For a network of timm it is one of `timm_networks.SIZES`.
    """
    name = _resolve(name)
    if name.startswith(timm_networks.PREFIX):
        return timm_networks.least_size(name)
    if name == "simple_cnn":
        return 4  # with its two default poolings
    if _sized_by(name):
        return next(size for size in range(1, 1025) if _works(name, size))
    net = _without_weights(name, {"aux_logits": False} if name in AUXILIARY else {})
    low, high = 1, 1
    while not _accepts(net, high) and high < 1024:
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _accepts(net, middle) else (middle + 1, high)
    return low


# ---- names and numbers


LARGEST = 2**31 - 1
"""The largest number for any size: sizes of tensors have 64 bits, and are products of such numbers."""


def _positive(**numbers: Any) -> None:
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}: expected a whole number of at least 1, got {value!r}")
        if value > LARGEST:
            raise ValueError(f"{key}: expected a whole number of at most {LARGEST}, got {value}")


def _resolve(name: str) -> str:
    """The name as `net_names` spells it."""
    if not isinstance(name, str):
        raise ValueError(f"net: expected the name of a network, such as 'simple_cnn' or 'resnet18', got {name!r}")
    if name.lower().startswith(timm_networks.PREFIX):
        return timm_networks.PREFIX + timm_networks.resolved(name)
    known = {other: other for other in net_names()} | {"simplecnn": "simple_cnn"}
    plain = name.lower().replace("-", "_")
    if plain in known:
        return known[plain]
    close = difflib.get_close_matches(plain, known, 5, 0.5) or ["simple_cnn", "resnet18", "mobilenet_v2"]
    raise ValueError(f"net: unknown network {name!r}; close to it: {', '.join(close)} ({len(net_names())} in all)")


# ---- which images a network accepts


class _Weightless(TorchFunctionMode):
    """Builds modules on the meta device; tensors from which a constructor computes numbers stay real."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if function in (torch.empty, torch.zeros, torch.ones):
            options["device"] = "meta"
        return function(*args, **options)


def _without_weights(name: str, options: dict[str, Any]) -> nn.Module:
    with _Weightless():
        return _construct(name, options | ({"init_weights": False} if name in AUXILIARY else {}))


def _accepts(net: nn.Module, image_size: int) -> bool:
    """Whether the network accepts a batch of two in training mode; on the meta device, which computes no values."""
    state = {
        key: torch.empty_like(value, device="meta") for key, value in [*net.named_parameters(), *net.named_buffers()]
    }
    try:
        torch.func.functional_call(net, state, (torch.empty(2, 3, image_size, image_size, device="meta"),))
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


def _sized_by(name: str) -> str | None:
    """The option of the constructor that fixes the size of the images; None if there is none."""
    return "image_size" if name.startswith("vit") else "input_size" if name.startswith("maxvit") else None


def _candidates(name: str, image_size: int) -> list[dict[str, Any]]:
    """Constructor options for images of this size, best first."""
    option = _sized_by(name)
    if option is not None:
        return [{option: image_size if option == "image_size" else (image_size, image_size)}]
    return [{"aux_logits": True}, {"aux_logits": False}] if name in AUXILIARY else [{}]


def _works(name: str, image_size: int) -> dict[str, Any] | None:
    """The first options with which the network accepts images of this size; None if there are none."""
    for options in _candidates(name, image_size):
        try:
            net = _without_weights(name, options)
        except (RuntimeError, ValueError, AssertionError, ZeroDivisionError):
            continue
        if _accepts(net, image_size):
            return options
    return None


def _options(name: str, image_size: int) -> dict[str, Any]:
    options = _works(name, image_size)
    if options is not None:
        return options
    least = least_image_size(name)
    if image_size < least:
        raise ValueError(f"image_size: {name} needs images of at least {least} pixels, got {image_size}")
    larger = next((size for size in range(image_size, image_size + 513) if _works(name, size) is not None), least)
    raise ValueError(f"image_size: {name} cuts images into equal windows: expected {larger}, say, got {image_size}")


# ---- torchvision's networks


def _construct(name: str, options: dict[str, Any]) -> nn.Module:
    with warnings.catch_warnings():
        # torchvision warns of a faster initialisation in future, and of GoogLeNet's auxiliary heads without training
        warnings.simplefilter("ignore")
        net: nn.Module = torchvision.models.get_model(name, **options)
    return net.train()


def _fresh(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    more: dict[str, Any] = {"init_weights": True, "aux_logits": True} if name in AUXILIARY else {}
    return _construct(name, {"weights": None, "num_classes": num_classes, **more, **options})


def _pretrained(name: str, num_classes: int, weights: str, options: dict[str, Any]) -> nn.Module:
    offered = torchvision.models.get_model_weights(name)
    chosen = offered.__members__.get(weights.rpartition(".")[2]) if isinstance(weights, str) else None
    if chosen is None:
        raise ValueError(f"weights: expected one of {', '.join(offered.__members__)} for {name}, got {weights!r}")
    more: dict[str, Any] = {"aux_logits": True} if name in AUXILIARY else {}
    try:
        net = _construct(name, {"weights": chosen, **more, **options})
    except OSError as error:
        raise OSError(f"weights: {chosen} can't be fetched from {chosen.url}: {error}") from error
    _replace_head(net, len(chosen.meta["categories"]), num_classes)
    return net


def _replace_head(net: nn.Module, before: int, num_classes: int) -> None:
    """Give every head, also auxiliary ones, ``num_classes`` outputs. In torchvision no other layer has 1000."""
    if num_classes == before:
        return
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Linear) and module.out_features == before:
            head: nn.Module = nn.Linear(module.in_features, num_classes, module.bias is not None)
        elif isinstance(module, nn.Conv2d) and module.out_channels == before:
            head = _convolution(module, module.in_channels, num_classes)
        else:
            continue
        net.set_submodule(name, head)
    if hasattr(net, "num_classes"):
        net.num_classes = num_classes  # type: ignore[assignment]


def _replace_first_convolution(net: nn.Module, in_channels: int, *, pretrained: bool) -> None:
    """Replace the first convolution by one for ``in_channels`` instead of 3, with the same variance of its output.

    Pretrained weights are summed for one channel, so that a grey image gives the output of its colour version; for more
    channels ``w'[:, i] = w[:, i mod 3] * 3 / in_channels``. Other weights are new normal random numbers, with the old
    standard deviation times ``sqrt(3 / in_channels)``.
    """
    name, old = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    new = _convolution(old, in_channels, old.out_channels)
    with torch.no_grad():
        if pretrained and in_channels == 1:
            new.weight.copy_(old.weight.sum(1, keepdim=True))
        elif pretrained:
            repeats = -(-in_channels // 3)
            new.weight.copy_(old.weight.repeat(1, repeats, 1, 1)[:, :in_channels] * (3 / in_channels))
        else:
            new.weight.normal_().mul_(old.weight.std() * math.sqrt(3 / in_channels))
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    net.set_submodule(name, new)
    if hasattr(net, "transform_input"):
        net.transform_input = False  # type: ignore[assignment]  # it would normalise red, green and blue again


def _convolution(like: nn.Conv2d, in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels,
        out_channels,
        like.kernel_size,  # type: ignore[arg-type]
        like.stride,  # type: ignore[arg-type]
        like.padding,  # type: ignore[arg-type]
        like.dilation,  # type: ignore[arg-type]
        bias=like.bias is not None,
        padding_mode=like.padding_mode,
    )
