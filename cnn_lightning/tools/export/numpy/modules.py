"""The nodes of layers of ``torch.nn``."""

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from cnn_lightning.errors import UserError
from cnn_lightning.tools.export.numpy.lower import Lowering

Options = dict[str, Any]

ACTIVATIONS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("relu6", ()),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.ELU: ("elu", ("alpha",)),
    nn.GELU: ("gelu", ("approximate",)),
    nn.SiLU: ("silu", ()),
    nn.Mish: ("mish", ()),
    nn.Softplus: ("softplus", ("beta", "threshold")),
    nn.Hardswish: ("hardswish", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.Tanh: ("tanh", ()),
}
"""The formula of each activation, and the attributes that are its options."""


def _conv2d(module: Any, refuse: Callable[[str], Exception]) -> Options:
    if module.padding_mode != "zeros":
        raise refuse(f"padding_mode {module.padding_mode!r}")
    return _attributes(module, "stride", "padding", "dilation", "groups")


def _max_pool2d(module: Any, refuse: Callable[[str], Exception]) -> Options:
    if module.return_indices:
        raise refuse("return_indices")
    return _attributes(module, "kernel_size", "stride", "padding", "dilation", "ceil_mode")


def _self_attention(module: Any, refuse: Callable[[str], Exception]) -> Options:
    if not module.batch_first or module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        raise refuse("these options of MultiheadAttention")
    return {"heads": module.num_heads, "p": module.dropout}


def _attributes(module: Any, *names: str) -> Options:
    return {name: getattr(module, name) for name in names}


OTHERS: dict[type[nn.Module], tuple[str, Callable[[Any, Callable[[str], Exception]], Options]]] = {
    nn.Conv2d: ("conv2d", _conv2d),
    nn.Linear: ("linear", lambda module, _: {}),
    nn.MaxPool2d: ("max_pool2d", _max_pool2d),
    nn.AvgPool2d: (
        "avg_pool2d",
        lambda module, _: _attributes(
            module, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
        ),
    ),
    nn.BatchNorm2d: ("batch_norm", lambda module, _: _attributes(module, "eps", "momentum")),
    nn.LayerNorm: ("layer_norm", lambda module, _: {"axes": len(module.normalized_shape), "eps": module.eps}),
    nn.Dropout: ("dropout", lambda module, _: {"p": module.p, "along": "all"}),
    nn.Softmax: ("softmax", lambda module, _: {"dim": module.dim}),
    nn.MultiheadAttention: ("self_attention", _self_attention),
}
"""The operation of each other layer, and what gives its options."""


def lower(nodes: Lowering, call: fx.Node, module: nn.Module) -> int:
    """The node of a call of a layer.

    Raises:
        UserError: It has no formula.
    """
    kind, x = type(module), nodes.place(call.args[0])
    if kind is nn.Identity:
        return x
    if kind is nn.Flatten:
        return nodes.add("reshape", [x], {"shape": nodes.recording.shape(call)}, of=call)
    if kind is nn.AdaptiveAvgPool2d:
        return nodes.add("adaptive_avg_pool2d", [x], {"output_size": nodes.recording.shape(call)[2:]}, of=call)
    if kind in ACTIVATIONS:
        formula, names = ACTIVATIONS[kind]
        return nodes.add("activation", [x], {"function": formula, **_attributes(module, *names)}, of=call)
    if kind not in OTHERS:
        raise UserError(f"--format: numpy has no formula for the layer {call.target} ({kind.__name__})")
    if kind is nn.MultiheadAttention and (set(call.args[:3]) != {call.args[0]} or set(call.kwargs) - {"need_weights"}):
        raise nodes.refused("attention to another sequence, or with a mask,")
    operation, options = OTHERS[kind]
    own = [*module.named_parameters(), *module.named_buffers()]
    names_by_role = {role: f"{call.target}.{role}" for role, _ in own}
    return nodes.add(operation, [x], options(module, nodes.refused), names_by_role, of=call, frozen=not module.training)
