"""Attention with several heads, and the containers that torch would compute past it."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cnn_lightning.layers import bridge, catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.layers.dropout import DropoutFunction
from cnn_lightning.layers.linear import LinearFunction
from cnn_lightning.ops import attention

__all__ = ["MultiheadAttention"]


class AttentionFunction(torch.autograd.Function):
    """softmax(scale q k^T + mask) v, and the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        keep: Tensor | None,
        options: dict[str, Any],
    ) -> Any:
        """Save the arguments and the weights."""
        y, weights = bridge.call(attention.scaled_dot_product_attention, q, k, v, mask, keep, **options)
        ctx.save_for_backward(q, k, v, weights, keep)
        ctx.set_materialize_grads(False)
        if not any(ctx.needs_input_grad[index] for index in (0, 1, 3)):
            ctx.mark_non_differentiable(weights)  # they do not depend on the values
        ctx.p = options["p"]
        return y, weights

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_weights: Tensor | None) -> Any:
        """The gradients of queries, keys, values and the mask."""
        q, k, v, weights, keep = ctx.saved_tensors
        grad_y = torch.zeros_like(q[..., :1]).expand(*q.shape[:-1], v.shape[-1]) if grad_y is None else grad_y
        pair = attention.scaled_dot_product_attention_backward
        needs = tuple(ctx.needs_input_grad[:4])
        return *bridge.call(pair, grad_y, q, k, v, weights, keep, grad_weights, p=ctx.p, needs=needs), None, None


def _products(q: Sequence[int], k: Sequence[int], y: Sequence[int]) -> int:
    """`catalog.Entry.flops`: each score is a product of E numbers, each result one of S."""
    return 2 * (prod(q) + prod(y)) * k[-2]


@catalog.layer(
    native=torch.nn.MultiheadAttention,
    formulas="attention",
    functions=("_native_multi_head_attention", "multi_head_attention_forward", "scaled_dot_product_attention"),
    kinks=(),
    choices=None,
    page=(
        r"y_l = \sum_s a_{l,s} v_s \text{, } a_{l,s} = \frac{e^{z_{l,s}}}{\sum_t e^{z_{l,t}}} \text{, }"
        r" z_{l,s} = \frac{1}{\sqrt{E}} \sum_e q_{l,e} k_{s,e}",
        r"\d{v_s} = \sum_l a_{l,s} g_l"
        "\n"
        r"\d{a_{l,s}} = \sum_e g_{l,e} v_{s,e}"
        "\n"
        r"\d{z_{l,s}} = a_{l,s} (\d{a_{l,s}} - \sum_t a_{l,t} \d{a_{l,t}})"
        "\n"
        r"\d{q_l} = \frac{1}{\sqrt{E}} \sum_s \d{z_{l,s}} k_s"
        "\n"
        r"\d{k_s} = \frac{1}{\sqrt{E}} \sum_l \d{z_{l,s}} q_l",
    ),
    memory={},
    flops=_products,
)
class MultiheadAttention(Layer, torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` in NumPy, with its projections; ``out_proj`` gives its weight and bias."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(L, N, E), (S, N, K) and (S, N, V) to (L, N, E) and the weights (N, L, S), those of all heads or their mean.

        With ``batch_first`` N comes first. Without a batch axis there is no N. The arguments are those of torch's.
        """
        for name, given in (("query", query), ("key", key), ("value", value)):
            bridge.expect_no_transform(given, name)
        is_batched = query.dim() == 3
        padding, mask = _canonical(key_padding_mask, attn_mask, query)
        if is_batched and self.batch_first:
            query, key, value = _of_each(query, key, value, lambda x: x.transpose(0, 1))
        functional._mha_shape_check(query, key, value, padding, mask, self.num_heads)  # type: ignore[attr-defined]
        if not is_batched:
            query, key, value = _of_each(query, key, value, lambda x: x.unsqueeze(1))
            padding = None if padding is None else padding.unsqueeze(0)
        if is_causal and mask is None:
            raise RuntimeError("attn_mask: expected a mask with the hint is_causal, got None")
        is_causal = is_causal and padding is None and not need_weights
        _expect_sizes(self, query, key, value, None if is_causal else mask, padding)
        q, k, v = _heads(self, *_projected(self, query, key, value))
        mask = None if is_causal else _merged(self, mask, padding, (*q.shape[:-1], k.shape[2]))
        p = self.dropout if self.training else 0.0
        keep = _drawn(q, k, p)
        q, k, v, mask = bridge.autocast("lower", q, k, v, mask)
        options = {"is_causal": is_causal, "p": p, "safe": not need_weights}
        y, weights = AttentionFunction.apply(q, k, v, mask, keep, options)
        y = y.permute(2, 0, 1, 3).flatten(2)
        y = _linear(y, self.out_proj.weight, self.out_proj.bias)
        y = y.transpose(0, 1) if is_batched and self.batch_first else y
        if need_weights and keep is not None:
            weights = DropoutFunction.apply(weights, keep, p, False)
        weights = weights.mean(dim=1) if average_attn_weights else weights
        if not is_batched:
            y, weights = y.squeeze(1), weights.squeeze(0)
        return y, weights if need_weights else None


def _canonical(padding: Any, mask: Any, query: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Both masks as numbers to add, by torch's own rules, warnings and errors."""
    other = functional._none_or_dtype(mask)
    padding = functional._canonical_mask(padding, "key_padding_mask", other, "attn_mask", query.dtype)
    return padding, functional._canonical_mask(mask, "attn_mask", None, "", query.dtype, check_other=False)


def _of_each(query: Tensor, key: Tensor, value: Tensor, change: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The three changed; what was one tensor stays one tensor."""
    changed = {id(x): change(x) for x in (query, key, value)}
    return changed[id(query)], changed[id(key)], changed[id(value)]


def _expect_sizes(
    layer: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, padding: Tensor | None
) -> None:
    """Torch's own checks of sizes.

    Raises:
        AssertionError: The sizes of query, key, value or the padding mask do not match.
        RuntimeError: The mask has another shape.
    """
    (length, batch, features), keys = query.shape, key.shape[0]
    alike = key.shape == value.shape
    if not layer._qkv_same_embed_dim:
        own = (layer.kdim, layer.vdim)
        alike = key.shape[:2] == value.shape[:2] and (key.shape[2], value.shape[2]) == own
    if features != layer.embed_dim or not alike:
        raise AssertionError(
            f"query, key, value: expected (L, N, {layer.embed_dim}) and (S, N, ...), got {tuple(query.shape)}, "
            f"{tuple(key.shape)} and {tuple(value.shape)}"
        )
    shapes = ((length, keys), (batch * layer.num_heads, length, keys))
    if mask is not None and mask.shape not in shapes:
        raise RuntimeError(f"attn_mask: expected shape {shapes[0]} or {shapes[1]}, got {tuple(mask.shape)}")
    if padding is not None and padding.shape != (batch, keys):
        raise AssertionError(f"key_padding_mask: expected shape {(batch, keys)}, got {tuple(padding.shape)}")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = LinearFunction.apply(*bridge.autocast("lower", x.contiguous(), weight, bias))
    return y


def _projected(layer: Any, query: Tensor, key: Tensor, value: Tensor) -> Any:
    """Queries, keys and values of all heads (L, N, E), (S, N, E), (S, N, E); of one tensor in one product."""
    weight, bias = layer.in_proj_weight, layer.in_proj_bias
    if weight is not None and query is key is value:
        return _linear(query, weight, bias).chunk(3, dim=-1)
    parts = [slice(i * layer.embed_dim, (i + 1) * layer.embed_dim) for i in range(3)]
    own = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    weights = own if weight is None else [weight[part] for part in parts]
    biases = [None if bias is None else bias[part] for part in parts]
    return [_linear(*each) for each in zip((query, key, value), weights, biases, strict=True)]


def _heads(layer: Any, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """(L, N, E) as (N, heads, L, E / heads), with the layer's own keys and values and those of zeros at the end."""
    batch = q.shape[1]
    if layer.bias_k is not None:
        k, v = torch.cat([k, layer.bias_k.repeat(1, batch, 1)]), torch.cat([v, layer.bias_v.repeat(1, batch, 1)])
    if layer.add_zero_attn:
        k, v = (torch.cat([x, x.new_zeros(1, *x.shape[1:])]) for x in (k, v))
    return [x.view(*x.shape[:2], layer.num_heads, layer.head_dim).permute(1, 2, 0, 3) for x in (q, k, v)]


def _merged(layer: Any, mask: Tensor | None, padding: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """Both masks as one of the shape (N, heads, L, S), with 0 for the keys that `_heads` adds."""
    batch, heads, length, keys = shape
    if mask is not None:
        mask = functional.pad(mask, (0, keys - mask.shape[-1]))
        mask = mask if mask.dim() == 2 else mask.view(batch, heads, length, keys)
    if padding is not None:
        padding = functional.pad(padding, (0, keys - padding.shape[-1])).view(batch, 1, 1, keys)
        mask = padding if mask is None else mask + padding
    return None if mask is None else mask.expand(shape)


def _drawn(q: Tensor, k: Tensor, p: float) -> Tensor | None:
    """1 for each weight to keep, 0 for the others, drawn by torch's own dropout; None where none is dropped."""
    if p == 0:
        return None
    return functional.dropout(q.new_ones(*q.shape[:-1], k.shape[2]), p).ne_(0)


# ---- containers: in evaluation torch's compute a layer in one operator, which reads weights and calls no layer


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer` that always calls its layers."""

    @property
    def activation_relu_or_gelu(self) -> int:
        """0, which means another activation, for which torch has no such operator."""
        return 0

    @activation_relu_or_gelu.setter
    def activation_relu_or_gelu(self, value: int) -> None:
        vars(self)["activation_relu_or_gelu"] = value  # for the way back to torch's class


class TransformerEncoder(torch.nn.TransformerEncoder):
    """`torch.nn.TransformerEncoder` that gives its layers no nested tensors, which NumPy layers can't take."""

    @property
    def use_nested_tensor(self) -> bool:
        """False: padding stays padding."""
        return False

    @use_nested_tensor.setter
    def use_nested_tensor(self, value: bool) -> None:
        vars(self)["use_nested_tensor"] = value  # for the way back to torch's class
