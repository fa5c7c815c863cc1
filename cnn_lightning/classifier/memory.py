"""Which memory format of the batches ``auto`` is: batch-last or contiguous."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.errors import one_line
from cnn_lightning.layers.memory import Memory, batch_last
from cnn_lightning.model import heads
from cnn_lightning.ops.fast import chooser
from cnn_lightning.swap.native import formula_file, is_ours_type

PICTURES = 4
"""The pictures of the trial. Batch norm over two values amplifies rounding in a deep network (gradients of DenseNet-169
for 32x32 pictures differ by 1e-2 then, in float64; with three pictures by 4e-9, with four by 3e-12)."""
TOLERANCE = 1e-6
"""The largest difference of the trial's results, relative to the largest of their kind.

The trial is in float64, where rounding makes a difference of at most 2e-11 (formulas; DenseNet-121 and -169,
EfficientNet-B0 and MobileNetV2 for 32x32 pictures, Inception v3 for 96x96). A layer that takes some pixels for others
makes one of about 1.
"""
LONGEST = 38
"""The letters of an error that the report of layers shows, on a line of 80."""
LARGEST = 50_000_000
"""The weights of a network that is tried, at most: a trial needs about 28 bytes for each, Adam's training 16. That of
VGG-11 with 133 million weights took 11 seconds."""
GAIN = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.BatchNorm2d,
)
"""The layers that are faster in batch-last if they run in NumPy."""


def chosen(net: nn.Module, device: torch.device, shape: Sequence[int], *, compiled: bool) -> Memory:
    """Batch-last if NumPy gains by it and a trial step in it equals the contiguous one; contiguous otherwise.

    Args:
        net: Is not changed, nor is the state of torch's random numbers.
        device: Where it will run.
        shape: Of one image, (C, H, W).
        compiled: Whether a compiler chooses the strides.
    """
    if compiled:
        return Memory("contiguous", "compiled")
    if device.type != "cpu":
        return Memory("contiguous", f"on {device.type}")
    if not any(map(_gains, net.modules())):
        return Memory("contiguous", "no convolution, pooling or batch norm by fast functions")
    weights = sum(weight.numel() for weight in net.parameters())
    if weights > LARGEST:
        return Memory("contiguous", f"{weights / 1e6:.0f} million weights are too many for a trial")
    reason = _trial(net, shape)
    return Memory("contiguous", reason) if reason else Memory("batch_last")


def _gains(module: nn.Module) -> bool:
    ours = isinstance(module, GAIN) and is_ours_type(type(module))
    return ours and not chooser.why_formula(formula_file(module))


# ---- the trial


def _trial(net: nn.Module, shape: Sequence[int]) -> str:
    """Why a step of the network in batch-last is not the contiguous one; empty if it is.

    A step is a forward and a backward pass of made pictures through a copy of the network.
    """
    images = torch.randn(PICTURES, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        expected = _step(net, images)
    except Exception as error:  # a network may raise anything, and does so again in the run
        return f"a trial step fails: {one_line(error, LONGEST)}"
    try:
        found = _step(net, batch_last(images))
        differences = list(map(_difference, found, expected))
    except Exception as error:  # also for results of another number or shape
        return f"fails in batch_last: {one_line(error, LONGEST)}"
    for kind, difference in zip(("logits", "gradients", "buffers"), differences, strict=True):
        if not difference <= TOLERANCE:  # or it is NaN
            return f"{kind} in batch_last differ by {difference:.0e}"
    return ""


def _step(net: nn.Module, images: Tensor) -> tuple[list[Tensor], ...]:
    """Logits, gradients of the weights, and buffers after one step, all in float64.

    The loss is the sum of squared logits. The layers of dropout do nothing: they draw their masks in the order of the
    memory, so that the pixels of images that they zero depend on the format.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the first batch gives them, too
        torch.default_generator.manual_seed(0)
        twin = _copy(net)
        logits = heads(twin(images))
        weights = [weight for weight in twin.parameters() if weight.requires_grad]
        loss = torch.stack([head.square().sum() for head in logits]).sum()
        gradients: Sequence[Tensor | None] = ()
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    buffers = [buffer for buffer in twin.buffers() if buffer.is_floating_point()]
    return [head.detach() for head in logits], [each for each in gradients if each is not None], buffers


def _copy(net: nn.Module) -> nn.Module:
    """A copy in float64, without hooks, and without dropout."""
    kinds = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    hooks: dict[int, Any] = {id(vars(each)[kind]): OrderedDict() for each in net.modules() for kind in kinds}
    twin = copy.deepcopy(net, hooks).double()  # the memo of `deepcopy`: what stands there is not copied
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return twin


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of all; NaN if there is one."""
    if not expected and not found:
        return 0.0
    largest = torch.stack([value.abs().max() for value in expected]).max()
    difference = torch.stack([(a - b).abs().max() for a, b in zip(found, expected, strict=True)]).max()
    return float(difference / largest.clamp(min=torch.finfo(largest.dtype).tiny))
