"""What each layer of a network gives and costs: the shape of its output, its parameters, and its FLOPs."""

import copy
import warnings
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import cnn_lightning.layers.flops  # noqa: F401 -- lets the counter count NumPy layers
from cnn_lightning.classifier import Classifier
from cnn_lightning.swap.observe import run


@dataclass(frozen=True)
class Size:
    """Of a module.

    Args:
        shape: Of its output for one picture, without the batch; empty if it is not known.
        parameters: Their number, with those of the modules inside it.
        flops: Multiplications and additions of its convolutions and matrix products in a forward pass of one picture.
    """

    shape: tuple[int, ...] = ()
    parameters: int = 0
    flops: int = 0


def sizes_of(module: Classifier) -> dict[str, Size]:
    """The size of each module of the network, by its name, from a run of one made picture in evaluation.

    If that run fails, only the parameters are known. Those of a module that has two names are counted at each.
    """
    modules = dict(module.net.named_modules(remove_duplicate=False))
    sizes = {name: Size(parameters=sum(own.numel() for own in each.parameters())) for name, each in modules.items()}
    try:
        found = _measured(module)
    except Exception:  # a network may raise anything, and does so again in the run
        return sizes
    return {name: replace(size, shape=found[name].shape, flops=found[name].flops) for name, size in sizes.items()}


def _measured(module: Classifier) -> defaultdict[str, Size]:
    net, sizes = without_hooks(module.net), defaultdict[str, Size](Size)
    begun: dict[str, list[int]] = defaultdict(list)
    counter = FlopCounterMode(display=False)
    for name, each in net.named_modules(remove_duplicate=False):
        each.register_forward_pre_hook(partial(_begin, begun[name], counter))
        each.register_forward_hook(partial(_end, begun[name], counter, sizes, name))
    with warnings.catch_warnings(), counter:
        warnings.simplefilter("ignore")  # the first batch gives them, too
        run(net, made_pictures(module, 1), training=False)
    return sizes


def _begin(begun: list[int], counter: FlopCounterMode, layer: nn.Module, inputs: Any) -> None:
    begun.append(counter.get_total_flops())


def _end(
    begun: list[int],
    counter: FlopCounterMode,
    sizes: dict[str, Size],
    name: str,
    layer: nn.Module,
    inputs: Any,
    output: Any,
) -> None:
    shape = tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else ()
    sizes[name] = Size(shape, 0, sizes[name].flops + counter.get_total_flops() - begun.pop())


def made_pictures(module: Classifier, n: int) -> torch.Tensor:
    """Made pictures of the size, the type and on the device of the network."""
    channels, size = module.hparams["in_channels"], module.hparams["image_size"]
    pictures = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))
    return pictures.to(next(module.net.parameters()))


def without_hooks(net: nn.Module) -> nn.Module:
    """A copy with the same parameters, its own buffers, and without hooks, which would notice the run."""
    kinds = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    memo: dict[int, Any] = {id(vars(each)[kind]): OrderedDict() for each in net.modules() for kind in kinds}
    return copy.deepcopy(net, memo | {id(weight): weight for weight in net.parameters()})
