"""Where each layer of the catalogue is asked for its gradient: kinks, ties, -0, NaN and infinities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.layers import catalog
from cnn_lightning.tools.check.answers import Function, Numbers

Lay = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """A layer with options, and the places where it is asked.

    Attributes:
        entry: The layer in the catalogue.
        places: The numbers of one input each; other inputs don't change its result.
        options: Those of the constructor.
        per_copy: The option that is the number of copies, if the copies are channels.
        lay: From ``(copies, numbers)`` to the layer's input; more than one where its kernels depend on the layout.
        collect: From the layer's output to ``(copies, results)``.
        call: Applies the layer to its input.
        prepare: Changes the new layer: its weights.
        note: What the heading says beside the options.
    """

    entry: catalog.Entry
    places: Sequence[Numbers]
    options: Mapping[str, Any] = field(default_factory=dict)
    per_copy: str = ""
    lay: tuple[Lay, ...] = (lambda rows: rows,)
    collect: Lay = lambda y: y.reshape(len(y), -1)
    call: Callable[[nn.Module, Tensor], Any] = lambda module, x: module(x)
    prepare: Callable[[nn.Module], None] = lambda module: None
    note: str = ""

    @property
    def name(self) -> str:
        """The layer with its options."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.entry.native.__name__}({options})" + (f" {self.note}" if self.note else "")

    def functions(self, kind: type[nn.Module]) -> list[Function]:
        """The layer by ``kind``, native or ours, as functions of copies of a place; one for each layout."""

        def of(lay: Lay) -> Function:
            def function(rows: Tensor) -> Tensor:
                copies = {self.per_copy: len(rows)} if self.per_copy else {}
                module = kind(**self.options, **copies)
                with torch.no_grad():
                    self.prepare(module)
                return self.collect(self.call(module.to(rows.dtype), lay(rows)))

            return function

        return [of(lay) for lay in self.lay]


def settings() -> list[Setting]:
    """Each layer of the catalogue, in its order, with usual options and with those that move a kink."""
    return [setting for entry in catalog.entries().values() for setting in _FAMILIES[entry.layer.__module__](entry)]


SPECIAL = (nan, inf, -inf)


def _singles(*numbers: float) -> list[Numbers]:
    return [(number,) for number in numbers]


def _kinks(entry: catalog.Entry, options: Mapping[str, Any], more: Sequence[float]) -> list[Numbers]:
    """The places of a layer of one number: its kinks and ``more``, both zeros for 0, and what is not finite."""
    found = sorted({*entry.kinks_of(entry.native(**options)), *more})
    return _singles(*(each for kink in found for each in ((-0.0, 0.0) if kink == 0 else (kink,))), *SPECIAL)


def _activation(entry: catalog.Entry) -> list[Setting]:
    if entry.native is nn.GLU:
        return [Setting(entry, [(1, nan), (nan, 0), (0, inf), (inf, -inf), (-inf, inf), (1, -inf)])]
    options: Mapping[type[nn.Module], list[tuple[dict[str, Any], Sequence[float]]]] = {
        nn.Threshold: [({"threshold": 1, "value": 5}, ())],
        nn.ELU: [({}, (0,)), ({"alpha": 2}, (0,))],
        nn.CELU: [({}, (0,)), ({"alpha": 2}, (0,))],
        nn.GELU: [({}, ()), ({"approximate": "tanh"}, ())],
        nn.Softplus: [({}, ()), ({"beta": 2, "threshold": 2}, (1,))],
    }
    return [Setting(entry, _kinks(entry, row, more), row) for row, more in options.get(entry.native, [({}, ())])]


def _softmax(entry: catalog.Entry) -> list[Setting]:
    return [Setting(entry, [(1, 1), (nan, 0), (inf, 0), (-inf, 0), (inf, inf), (-inf, -inf)], {"dim": 1})]


def _image(rank: int) -> Lay:
    """One channel and ``rank`` axes of pixels."""
    return lambda rows: rows.reshape(len(rows), 1, *[1] * (rank - 1), -1)


def _rank(entry: catalog.Entry) -> int:
    return int(entry.native.__name__[-2]) if entry.native.__name__[-1] == "d" else 0


def _dropout(entry: catalog.Entry) -> list[Setting]:
    lay = _image(_rank(entry)) if _rank(entry) else lambda rows: rows
    return [Setting(entry, _singles(-0.0, *SPECIAL), {"p": 1.0}, lay=(lay,), note="drops all")]


def _zero_one(module: nn.Module) -> None:
    """The weights 0 and 1."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight.copy_(torch.tensor([0.0, 1.0]).reshape(weight.shape))


def _linear(entry: catalog.Entry) -> list[Setting]:
    options = {"in_features": 2, "out_features": 1, "bias": False}
    return [Setting(entry, _BESIDE_ZERO, options, prepare=_zero_one, note="of weights 0, 1")]


_BESIDE_ZERO = [(nan, 1), (inf, 1), (1, inf), (-inf, inf)]


def _conv(entry: catalog.Entry) -> list[Setting]:
    rank = _rank(entry)
    options = {"in_channels": 1, "out_channels": 1, "kernel_size": (*[1] * (rank - 1), 2), "bias": False}
    lay = (_image(rank),)
    return [Setting(entry, _BESIDE_ZERO, options, lay=lay, prepare=_zero_one, note="of weights 0, 1")]


def _attention(entry: catalog.Entry) -> list[Setting]:
    def ones(module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            parameter.fill_(0 if "bias" in name else 1)

    def attend(masked: bool) -> Callable[[nn.Module, Tensor], Any]:
        def call(module: nn.Module, x: Tensor) -> Any:
            mask = torch.ones(2, 2, dtype=torch.bool) if masked else None
            return module(x, x, x, need_weights=False, attn_mask=mask)[0]

        return call

    lay, options = (lambda rows: rows[..., None],), {"embed_dim": 1, "num_heads": 1, "batch_first": True}
    return [
        Setting(entry, [(1, 1), (nan, 0), (inf, 0), (-inf, 0)], options, lay=lay, call=attend(False), prepare=ones),
        Setting(entry, [(1, 1)], options, lay=lay, call=attend(True), prepare=ones, note="all of it masked"),
    ]


def _padding(entry: catalog.Entry) -> list[Setting]:
    rank = _rank(entry)
    options: dict[str, Any] = {"padding": (1, 1, *[0] * (2 * rank - 2))}
    if entry.native.__name__.startswith("Constant"):
        options["value"] = -0.0
    return [Setting(entry, [(-0.0, 1), (nan, 1), (inf, 1), (1, -inf)], options, lay=(_image(rank),))]


def _pool(entry: catalog.Entry) -> list[Setting]:
    rank = _rank(entry)

    def channels(rows: Tensor) -> Tensor:
        return rows.reshape(1, len(rows), *[1] * (rank - 1), -1)

    def last(rows: Tensor) -> Tensor:
        return channels(rows).contiguous(memory_format=torch.channels_last if rank == 2 else torch.channels_last_3d)

    places: list[Numbers] = [(nan, 1, 1), (inf, 1, 1), (-inf, 1, inf)]
    if entry.choices is not None:
        places = [(1, 1, 1), (0, 1, 1), (-0.0, 0.0, -1), (0.0, -0.0, -1), (nan, 1, 1), (1, nan, nan)]
        places += [(inf, inf, 0), (-inf, -inf, -inf)]
    adaptive = entry.native.__name__.startswith("Adaptive")
    options: dict[str, Any] = {"output_size": 1} if adaptive else {"kernel_size": (*[1] * (rank - 1), 3)}
    lays = (channels,) if rank == 1 else (channels, last)
    return [Setting(entry, places, options, lay=lays, collect=lambda y: y.reshape(y.shape[1], -1))]


def _loss(entry: catalog.Entry) -> list[Setting]:
    def against(target: float) -> Callable[[nn.Module, Tensor], Any]:
        return lambda module, x: module(x, torch.full_like(x, target))

    def of_class(number: int) -> Callable[[nn.Module, Tensor], Any]:
        return lambda module, x: module(x, torch.full((len(x),), number))

    none = {"reduction": "none"}
    scores = [(1, 1), (nan, 0), (inf, 0), (-inf, 0), (inf, inf), (-inf, -inf)]
    if entry.native is nn.CrossEntropyLoss:
        return [
            Setting(entry, scores, none, call=of_class(0), note="target 0"),
            Setting(entry, scores, {**none, "label_smoothing": 0.1}, call=of_class(0), note="target 0"),
            Setting(entry, scores[1:3], none, call=of_class(-100), note="target ignored"),
        ]
    if entry.native is nn.NLLLoss:
        return [
            Setting(entry, [(nan, -1), (-inf, -1), (-1, -inf), (inf, -1)], none, call=of_class(0), note="target 0"),
            Setting(entry, [(nan, -1), (-inf, -1)], none, call=of_class(-100), note="target ignored"),
        ]
    if entry.native is nn.BCELoss:
        places = _singles(0.0, 1.0, nan)
        return [Setting(entry, places, none, call=against(y), note=f"target {y}") for y in (0, 1)]
    if entry.native is nn.BCEWithLogitsLoss:
        places = _singles(0.0, *SPECIAL)
        return [Setting(entry, places, none, call=against(y), note=f"target {y}") for y in (0, 1)]
    betas = [{"beta": 1.0}, {"beta": 0.0}] if entry.native is nn.SmoothL1Loss else [{}]
    found = []
    for row in betas:
        kinks = (-1.0, -0.0, 0.0, 1.0) if row.get("beta") else (-0.0, 0.0)
        options = {**none, **row}
        found.append(Setting(entry, _singles(*kinks, *SPECIAL), options, call=against(0), note="target 0"))
    return [*found, Setting(entry, _singles(inf, -inf), none, call=against(inf), note="target inf")]


def _norm(entry: catalog.Entry) -> list[Setting]:
    places = [(1, 1, 1), (0, 0, 0), (nan, 1, 2), (inf, 1, 2), (-inf, 1, inf)]
    name, rank = entry.native.__name__, _rank(entry)
    if name.startswith("BatchNorm"):
        return [
            Setting(
                entry,
                places,
                per_copy="num_features",
                lay=(lambda rows: rows.T.reshape(-1, len(rows), *[1] * (rank if rank > 1 else 0)),),
                collect=lambda y: y.reshape(len(y), -1).T,
            )
        ]
    if name.startswith("InstanceNorm"):
        return [Setting(entry, places, {"num_features": 1}, lay=(_image(rank),))]
    if name == "GroupNorm":
        return [Setting(entry, places, {"num_groups": 1, "num_channels": 3})]
    lay: Lay = (lambda rows: rows[..., None, None]) if name == "LayerNorm2d" else (lambda rows: rows)
    # RMSNorm's own eps depends on the dtype.
    options = {"normalized_shape": 3} | ({"eps": 1e-6} if name == "RMSNorm" else {})
    return [Setting(entry, places, options, lay=(lay,))]


def _response(entry: catalog.Entry) -> list[Setting]:
    places = [(0, 0, 0), (nan, 1, 1), (inf, 1, 1), (1, -inf, 1)]
    return [Setting(entry, places, {"size": 3}, lay=(lambda rows: rows[..., None],))]


def _shape(entry: catalog.Entry) -> list[Setting]:
    return [Setting(entry, _singles(-0.0, *SPECIAL))]


def _upsample(entry: catalog.Entry) -> list[Setting]:
    places = [(nan, 1), (inf, 1), (1, -inf)]
    modes = [("nearest", 1), ("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3)]
    if entry.native is not nn.Upsample:
        return [Setting(entry, places, {"scale_factor": 2}, lay=(_image(2),))]
    return [Setting(entry, places, {"scale_factor": 2, "mode": mode}, lay=(_image(rank),)) for mode, rank in modes]


_FAMILIES = {
    f"cnn_lightning.layers.{name}": places
    for name, places in {
        "activation": _activation,
        "attention": _attention,
        "conv": _conv,
        "dropout": _dropout,
        "linear": _linear,
        "loss": _loss,
        "norm": _norm,
        "padding": _padding,
        "pool": _pool,
        "response": _response,
        "shape": _shape,
        "softmax": _softmax,
        "upsample": _upsample,
    }.items()
}
