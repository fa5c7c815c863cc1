"""Networks that others wrote, in NumPy: ``python -m tests.zoo [torchvision|timm|all] [--only NAME ...] [--json FILE]``.

Each network runs a step in float64 by torch, by NumPy layers (`swap_layers`, with its own classes treated as their
base), and by NumPy operators (`numpy_ops`). A line has the leaves that are not NumPy, the share of the FLOPs of
convolutions and matrix products in NumPy, and the largest differences of outputs and gradients, relative to the largest
number of their kind. Dropout and stochastic depth do nothing, and batch norm uses the running statistics.
"""

import argparse
import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cnn_lightning import numpy_ops, swap_layers
from cnn_lightning.errors import one_line
from cnn_lightning.swap import LAYERS, native_type

KINDS = ("swapped", "functions")
LARGEST = 110_000_000
"""The weights of a network that is compared in float64, with 40 bytes for each; larger ones run a step in float32."""
TIMM = """
bat_resnext26ts botnet26t_256 coatnet_nano_rw_224 convmixer_768_32 convnext_atto convnextv2_atto cs3darknet_m
cspresnet50 cspdarknet53 darknet53 densenet121 dla34 dm_nfnet_f0 dpn68 eca_nfnet_l0 ecaresnet26t edgenext_xx_small
efficientnet_b0 efficientnet_es efficientnetv2_rw_t efficientvit_b0 ese_vovnet19b_dw fastvit_t8 fbnetc_100 fbnetv3_b
focalnet_tiny_srf gcresnext26ts gernet_s ghostnet_100 ghostnetv2_100 gmixer_24_224 haloregnetz_b hardcorenas_a
hrnet_w18_small inception_next_tiny inception_v3 inception_v4 lambda_resnet26t lcnet_050 legacy_seresnet18 mixnet_s
mnasnet_100 mobilenetv1_100 mobilenetv2_100 mobilenetv3_large_100 mobilenetv4_conv_small mobileone_s0 nf_regnet_b0
nf_resnet50 poolformer_s12 pvt_v2_b0 regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9
res2net50_14w_8s resnest14d resnet18 resnet26t resnetaa50 resnetblur50 resnetrs50 resnetv2_50 resnetv2_50x1_bit
resnext26ts rexnet_100 sebotnet33ts_256 selecsls42b semnasnet_100 seresnet18 skresnet18 spnasnet_100 starnet_s1
swin_tiny_patch4_window7_224 tf_efficientnet_b0 tf_mobilenetv3_small_100 tinynet_a tresnet_m vgg11_bn visformer_tiny
vit_tiny_patch16_224 wide_resnet50_2 xception41 xcit_nano_12_p16_224
"""
ATTENTION = """
bat_resnext26ts botnet26t_256 coatnet_nano_rw_224 edgenext_xx_small efficientvit_b0 gmixer_24_224 haloregnetz_b
lambda_resnet26t pvt_v2_b0 sebotnet33ts_256 swin_tiny_patch4_window7_224 visformer_tiny vit_tiny_patch16_224
xcit_nano_12_p16_224
"""
"""Those that are no convolutional networks, or not only."""
SIZES = {"bat_resnext26ts": 256, "haloregnetz_b": 224}
"""Pictures of networks that need one of the size they were made for; others of any size get 96 pixels."""


@dataclass(frozen=True)
class Network:
    """A network of ``group``, how to build it, and the inputs of a step."""

    group: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]


@dataclass
class Row:
    """What was found; differences are relative, and ``error`` is why there is nothing.

    ``native`` are leaves that torch computes, ``places`` counts modules that call functions of torch themselves.
    """

    group: str
    name: str
    leaves: int = 0
    native: tuple[str, ...] = ()
    places: int = 0
    swapped: float = float("nan")
    functions: float = float("nan")
    share: float = float("nan")
    rest: tuple[str, ...] = ()
    is_large: bool = False
    error: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether every leaf is NumPy or without arithmetic."""
        return not self.error and not self.native


def pictures(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)


def pairs(size: int) -> tuple[Tensor, ...]:
    """Two batches of pictures."""
    return pictures(2, 3, size, size) * 2


def _size(name: str) -> int:
    """The smallest that the network takes."""
    if name.startswith(("vit", "swin", "maxvit")):
        return 224
    return 299 if name == "inception_v3" else 64


def torchvision_networks() -> Iterator[Network]:
    """Of all tasks."""
    models = torchvision.models

    def made(name: str, **options: Any) -> Callable[[], nn.Module]:
        return partial(models.get_model, name, weights=None, **options)

    for name in models.list_models(module=models):
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        size = _size(name)
        built = made(name, num_classes=10, **options)
        yield Network("classification", name, built, partial(pictures, 2, 3, size, size))
    for name in models.list_models(module=models.segmentation):
        built = made(name, weights_backbone=None, num_classes=5)
        yield Network("segmentation", name, built, partial(pictures, 2, 3, 64, 64))
    for name in models.list_models(module=models.video):
        size = 224 if name.startswith("mvit") else 112 if name.startswith("swin") else 64
        yield Network("video", name, made(name, num_classes=10), partial(pictures, 1, 3, 16, size, size))
    for name in models.list_models(module=models.optical_flow):
        yield Network("optical flow", name, made(name), partial(pairs, 128))
    for name in models.list_models(module=models.detection):
        few = {"rpn_post_nms_top_n_test": 50} if "rcnn" in name else {}  # proposals, each a picture of its own
        built = made(name, weights_backbone=None, num_classes=5, **few)
        yield Network("detection", name, built, lambda: (list(pictures(2, 3, 96, 96)[0].sigmoid()),))


def timm_networks() -> Iterator[Network]:
    """One or two of each family of convolutional networks, and some transformers."""
    timm = __import__("timm")

    def inputs(name: str) -> tuple[Tensor, ...]:
        wanted = timm.get_pretrained_cfg(name)
        size = wanted.input_size[-1] if wanted is not None and wanted.fixed_input_size else SIZES.get(name, 96)
        return pictures(2, 3, size, size)

    for name in TIMM.split():
        group = "timm, attention" if name in ATTENTION.split() else "timm"
        yield Network(group, name, partial(timm.create_model, name, num_classes=10), partial(inputs, name))


def prepared(net: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with running statistics that reach every layer."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            if not weight.any():
                weight.normal_(0, 0.02)  # some heads begin with zeros, through which no gradient passes
    for module in net.modules():
        mean, var = (getattr(module, f"running_{name}", None) for name in ("mean", "var"))
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            mean.normal_(0, 0.1)
            var.uniform_(0.5, 1.5)
    return net.double().eval()


def floats(outputs: Any) -> list[Tensor]:
    return [each for each in tree_leaves(outputs) if isinstance(each, Tensor) and each.is_floating_point()]


def step(net: nn.Module, inputs: Sequence[Any]) -> list[list[Tensor]]:
    """The outputs, and the gradients of all weights, of a sum of squares."""
    net.zero_grad()
    outputs = floats(net(*inputs))
    loss = torch.stack([output.square().mean() for output in outputs if output.requires_grad and output.numel()]).sum()
    loss.backward()
    gradients = [weight.grad for weight in net.parameters() if weight.grad is not None]
    return [[output.detach().clone() for output in outputs], [gradient.clone() for gradient in gradients]]


def difference(found: list[list[Tensor]], expected: list[list[Tensor]]) -> float:
    """The largest, relative to the largest number of its kind."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        scale = max((float(each.abs().max()) for each in b if each.numel()), default=0.0) or 1.0
        pairs = [(x, y) for x, y in zip(a, b, strict=True) if y.numel()]
        worst = max([worst, *(float((x - y).abs().max()) / scale for x, y in pairs)])
    return worst


def own_types(net: nn.Module) -> dict[Any, str]:
    """Patterns that have each class of the network's own treated as its base, and all other layers in NumPy."""
    kinds: dict[Any, str] = {}
    for module in net.modules():
        kind = type(module)
        if native_type(module) in LAYERS or kind in kinds:
            continue
        with contextlib.suppress(ValueError, TypeError):
            swap_layers(net, {kind: "numpy"})
            kinds[kind] = "numpy"
    swap_layers(net, "torch")
    return {**kinds, "*": "numpy"}


def is_native(row: Any) -> bool:
    """Whether torch computes a leaf; a row without a reason is that of a module that calls functions."""
    return row.implementation == "torch" and bool(row.reason)


def measured(network: Network) -> Row:
    """The row of a network."""
    row = Row(network.group, network.name)
    try:
        net, inputs = network.build(), network.inputs()
        row.is_large = sum(weight.numel() for weight in net.parameters()) > LARGEST
        prepared(net)
        if row.is_large:
            net.float()
            inputs = tuple(each.float() for each in inputs)
        expected = [] if row.is_large else step(net, inputs)
        with numpy_ops() as report:
            found = step(net, inputs)
        row.share = report.share
        row.functions = float("nan") if row.is_large else difference(found, expected)
        del found
        net.zero_grad()
        row.rest = tuple(f"{name}: {why}" for name, why in report.native)
        swap = swap_layers(net, own_types(net), verify=inputs[0] if len(inputs) == 1 else inputs)
        row.leaves = len(swap.rows)
        row.native = tuple(f"{one.name}: {one.type} ({one.reason})" for one in swap.rows if is_native(one))
        row.places = sum(bool(one.calls) for one in swap.rows)
        if not row.is_large:
            row.swapped = difference(step(net, inputs), expected)
    except Exception as error:
        row.error = one_line(error, 200)
    return row


def main() -> None:
    """Measure and print a line for each network, and what they add up to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="?", default="all", choices=("torchvision", "timm", "all"))
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--part", default="0/1", help="every n-th network, from the k-th on: k/n")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    networks = [*torchvision_networks()] if options.which != "timm" else []
    networks += [*timm_networks()] if options.which != "torchvision" else []
    first, every = map(int, options.part.split("/"))
    rows = []
    for network in networks[first::every]:
        if options.only and network.name not in options.only:
            continue
        row = measured(network)
        rows.append(row)
        print(line(row), flush=True)
    print(summary(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def line(row: Row) -> str:
    """One network."""
    head = f"{row.group:15} {row.name:28}"
    if row.error:
        return f"{head} {row.error}"
    more = f" and {len(row.native) - 2} more" if len(row.native) > 2 else ""
    return (
        f"{head} {row.leaves:4} rows, {len(row.native):3} leaves by torch, {row.places:3} call functions, differences: "
        f"layers {row.swapped:.0e}, functions {row.functions:.0e}; {100 * row.share:.5g} % of FLOPs "
        f"{'; '.join(row.native[:2])}{more}{'; '.join(row.rest)}"
    )


def summary(rows: Sequence[Row]) -> str:
    """A line for each group."""
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        ran = [row for row in rows if row.group == group and not row.error]
        if ran:
            whole, products = sum(row.is_whole for row in ran), sum(row.share >= 0.999 for row in ran)
            compared = [row for row in ran if not row.is_large]
            layers, functions = (max((getattr(row, kind) for row in compared), default=0.0) for kind in KINDS)
            lines.append(
                f"{group}: {whole} of {len(ran)} with every leaf in NumPy; {products} with 99.9 % of FLOPs by functions"
                f"; largest difference: layers {layers:.0e}, functions {functions:.0e}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
