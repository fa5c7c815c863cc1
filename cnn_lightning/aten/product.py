"""Products of matrices and vectors."""

from typing import Any

from torch import Tensor

from cnn_lightning.aten.kernels import operator
from cnn_lightning.layers import bridge
from cnn_lightning.ops import product


def _flops(_: Any, a: Tensor, b: Tensor, *__: Any) -> int:
    return 2 * a.numel() * (b.shape[-1] if b.dim() > 1 else 1)


def _of_sum(y: Any, c: Tensor, a: Tensor, b: Tensor, *_: Any) -> int:
    return _flops(y, a, b)


@operator("mm", flops=_flops)
def mm(a: Tensor, b: Tensor) -> Any:
    """(I, K) and (K, J) to (I, J)."""
    return bridge.compute(product.product, a, b)


@operator("bmm", flops=_flops)
def bmm(a: Tensor, b: Tensor) -> Any:
    """(N, I, K) and (N, K, J) to (N, I, J)."""
    return bridge.compute(product.product, a, b)


@operator("mv", flops=_flops)
def mv(a: Tensor, b: Tensor) -> Any:
    """(I, K) and (K,) to (I,)."""
    return bridge.compute(product.product, a, b.unsqueeze(-1)).squeeze(-1)


@operator("dot", flops=_flops)
def dot(a: Tensor, b: Tensor) -> Any:
    """(K,) and (K,) to ()."""
    return bridge.compute(product.product, a.unsqueeze(0), b.unsqueeze(-1)).reshape(())


@operator("vdot", flops=_flops)
def vdot(a: Tensor, b: Tensor) -> Any:
    """`dot`, of real numbers."""
    return dot(a, b)


@operator("addmm", flops=_of_sum)
def addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """Beta c + alpha (a @ b)."""
    return bridge.compute(product.add_product, c, a, b, beta=beta, alpha=alpha)


@operator("baddbmm", flops=_of_sum)
def baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """`addmm` of stacks of matrices."""
    return bridge.compute(product.add_product, c, a, b, beta=beta, alpha=alpha)


@operator("addmv", flops=_of_sum)
def addmv(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """`addmm` of a matrix and a vector."""
    column = c.unsqueeze(-1) if c.dim() else c
    return bridge.compute(product.add_product, column, a, b.unsqueeze(-1), beta=beta, alpha=alpha).squeeze(-1)


@operator("addbmm", flops=_of_sum)
def addbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """`addmm` of the matrices of two stacks side by side: the sum of their products."""
    left = a.transpose(0, 1).reshape(a.shape[1], a.shape[0] * a.shape[2])
    right = b.reshape(b.shape[0] * b.shape[1], b.shape[2])
    return addmm(c, left, right, beta=beta, alpha=alpha)
