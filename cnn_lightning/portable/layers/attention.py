"""Attention of a sequence to itself with several heads, by `ops.attention` and `ops.linear`."""

import numpy as np

from cnn_lightning.ops import attention, linear
from cnn_lightning.ops.types import Array
from cnn_lightning.portable.layers.base import Layer


class SelfAttention(Layer):
    """Queries, keys and values of one input, by one product; then attention, and a last product."""

    def forward(self, x: Array) -> Array:
        """(N, L, E), the same."""
        weights = self.parameters
        p = self.options["p"] if self.training else 0.0
        projected = linear.linear(x, weights["in_proj_weight"], weights.get("in_proj_bias"))
        q, k, v = (self._heads(part) for part in np.split(projected, 3, axis=2))
        keep = (self.random.random((*q.shape[:3], k.shape[2]), np.float32) >= p).astype(x.dtype) if p else None
        y, looks = attention.scaled_dot_product_attention(q, k, v, None, keep, p=p)
        merged = y.swapaxes(1, 2).reshape(x.shape)
        self.saved = x, q, k, v, looks, keep, p, merged
        return linear.linear(merged, weights["out_proj.weight"], weights.get("out_proj.bias"))

    def backward(self, grad_y: Array) -> tuple[Array]:
        """Of the input; and of the weights and biases of both products."""
        x, q, k, v, looks, keep, p, merged = self.saved
        grad_merged, grad_out, grad_out_bias = linear.linear_backward(
            grad_y, merged, self.parameters["out_proj.weight"]
        )
        upstream = self._heads(grad_merged)
        *grads, _ = attention.scaled_dot_product_attention_backward(upstream, q, k, v, looks, keep, p=p)
        projected = np.concatenate([grad.swapaxes(1, 2).reshape(x.shape) for grad in grads], axis=2)
        grad_x, grad_in, grad_in_bias = linear.linear_backward(projected, x, self.parameters["in_proj_weight"])
        self.gradients = {
            "in_proj_weight": grad_in,
            "in_proj_bias": grad_in_bias,
            "out_proj.weight": grad_out,
            "out_proj.bias": grad_out_bias,
        }
        return (grad_x,)

    def _heads(self, x: Array) -> Array:
        """(N, L, E) as (N, heads, L, E / heads)."""
        n, length, features = x.shape
        heads = self.options["heads"]
        return x.reshape(n, length, heads, features // heads).swapaxes(1, 2)
