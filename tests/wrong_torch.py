"""Faults of torch, one that it has and any that a test plants, for the judge to find."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn


class Tokens(nn.Module):
    """(N, C, H, W) to (N, H W, C), as a transformer does; the gradient comes back with transposed memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def _is_broken() -> bool:
    """Whether the gradient of a batch of 1 depends on a stride that means nothing."""
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(144, dtype=torch.float64).as_strided((1, 4, 6, 6), (4, 1, 24, 4))
    y = nn.BatchNorm2d(4).double()(x)
    found, right = (torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in (gradient, gradient.contiguous()))
    return not torch.allclose(found, right)


with_broken_batch_norm = pytest.mark.skipif(not _is_broken(), reason="this torch computes it right")


@contextmanager
def planted(
    operator: str,
    change: Callable[[Any, Sequence[Any]], Any],
    where: Callable[[Sequence[Any]], bool] = lambda arguments: True,
) -> Iterator[None]:
    """Inside, a kernel of torch on the CPU returns ``change(results, arguments)`` where ``where`` says so."""
    kernel = library.get_kernel(f"aten::{operator}", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def wrong(*arguments: Any) -> Any:
        results = kernel.call_boxed(keys, *arguments)
        return change(results, arguments) if where(arguments) else results

    registered = library.Library("aten", "IMPL")
    registered.impl(operator, wrong, "CPU", allow_override=True)  # a fault inside a fault
    try:
        yield
    finally:
        registered._destroy()


def times(factor: float, index: int = 0) -> Callable[[Any, Sequence[Any]], Any]:
    """The change of one result by a factor."""

    def change(results: Any, arguments: Sequence[Any]) -> Any:
        if isinstance(results, Tensor):
            return results * factor
        return tuple(r * factor if i == index and r is not None else r for i, r in enumerate(results))

    return change


def wrong_kernel(operator: str, index: int = 0, dtype: Any = None) -> AbstractContextManager[None]:
    """Inside, a result of torch's kernel on the CPU is wrong by a thousandth, in one dtype or in all."""
    return planted(operator, times(1.001, index), lambda arguments: dtype in (None, arguments[0].dtype))
