"""A fused stage equals its three layers, in torch and in NumPy; a layer with a hook or a tool on it is not fused."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cnn_lightning import build_net, layers, swap_layers
from cnn_lightning.layers import fused as fused_layers
from cnn_lightning.ops.fast import fused
from tests.test_layers import assert_refused_alike


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(x, weight, bias, padding=padding)), 2)


def ours(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, upstream: Tensor) -> list[np.ndarray]:
    arrays: list[Any] = [None if value is None else value.detach().numpy() for value in (x, weight, bias)]
    y, *kept = fused.conv_relu_pool(*arrays, paddings=[padding])
    back = fused.conv_relu_pool_backward(
        upstream.numpy(), *arrays, *kept, paddings=[padding], needs=(True, True, bias is not None)
    )
    return [array for array in (y, *back) if array is not None]


def assert_stage(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> None:
    wanted = [value.requires_grad_() for value in (x, weight, bias) if value is not None]
    y = reference(x, weight, bias, padding)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    expected = [y, *torch.autograd.grad(y, wanted, upstream)]
    for a, b in zip(ours(x, weight, bias, padding, upstream), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(a), b.detach(), rtol=1e-10, atol=1e-10, equal_nan=True)


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(2, 11), st.integers(2, 11)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.integers(0, 2),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_torch_in_float64(
    size: tuple[int, ...], kernel: tuple[int, int], padding: int, with_bias: bool, seed: int
) -> None:
    assume(all(n + 2 * padding - k >= 1 for n, k in zip(size[2:], kernel, strict=True)))
    torch.manual_seed(seed)
    x, weight = torch.randn(size, dtype=torch.float64), torch.randn(2, size[1], *kernel, dtype=torch.float64)
    assert_stage(x, weight, torch.randn(2, dtype=torch.float64) if with_bias else None, padding)


def test_ties_go_to_the_first_and_nothing_passes_where_relu_is_zero() -> None:
    x = torch.ones(2, 1, 6, 6, dtype=torch.float64)
    x[1] = 0
    assert_stage(x, torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_nan_and_infinity_take_the_same_way(value: float, place: tuple[int, int]) -> None:
    x = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4) + 1
    x[0, 0, place[0], place[1]] = value
    assert_stage(x, torch.ones(1, 1, 1, 1, dtype=torch.float64), None, 0)


def test_an_infinite_upstream_gradient_stays_at_the_winner() -> None:
    x, weight = np.arange(16.0).reshape(1, 1, 4, 4), np.ones((1, 1, 1, 1))
    y, *kept = fused.conv_relu_pool(x, weight, None, paddings=[0])
    grad_x, *_ = fused.conv_relu_pool_backward(
        np.full_like(y, np.inf), x, weight, None, *kept, paddings=[0], needs=(True, False, False)
    )
    assert grad_x is not None
    assert np.isinf(grad_x).sum() == 4
    assert not np.isnan(grad_x).any()


@settings(max_examples=40)
@given(
    n=st.sampled_from([0, 1, 15, 16, 33, 70]),
    size=st.tuples(st.integers(1, 3), st.integers(6, 14), st.integers(6, 14)),
    stages=st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 3]), st.integers(0, 2)), min_size=2, max_size=3
    ),
    needs=st.integers(1, 2**7 - 1),
    seed=st.integers(0, 99),
)
def test_a_chain_of_stages_equals_torch(
    n: int, size: tuple[int, ...], stages: list[tuple[int, int, int]], needs: int, seed: int
) -> None:
    """Several blocks, odd sizes, any choice of gradients; the output is the same where nothing is kept for backward."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *size, generator=generator, dtype=torch.float64).requires_grad_()
    parameters: list[Tensor] = []
    y = x
    for channels, kernel, padding in stages:
        assume(min(y.shape[2:]) + 2 * padding - kernel >= 1)
        weight = torch.randn(channels, y.shape[1], kernel, kernel, generator=generator, dtype=torch.float64)
        bias = torch.randn(channels, generator=generator, dtype=torch.float64)
        parameters += [weight, bias]
        y = reference(y, weight.requires_grad_(), bias.requires_grad_(), padding)
    leaves = [x, *parameters]
    wanted = [bool(needs >> bit & 1) for bit in range(len(leaves))]
    upstream = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(y, leaves, upstream)
    arrays, paddings = [value.detach().numpy() for value in leaves], [padding for *_, padding in stages]
    found, *kept = fused.conv_relu_pool(*arrays, paddings=paddings)
    torch.testing.assert_close(torch.from_numpy(found), y.detach(), rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(fused.conv_relu_pool(*arrays, paddings=paddings, keep=False), found)
    if any(wanted):
        back = fused.conv_relu_pool_backward(upstream.numpy(), *arrays, *kept, paddings=paddings, needs=wanted)
        assert [gradient is not None for gradient in back] == wanted
        for a, b in zip(back, expected, strict=True):
            if a is not None:
                torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-9, atol=1e-9)


# ---- the layers


def stage(**conv: Any) -> list[torch.nn.Module]:
    torch.manual_seed(0)
    options = {"kernel_size": 3, "padding": 1} | conv
    return [layers.Conv2d(2, 4, **options), layers.ReLU(), layers.MaxPool2d(2)]


def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls = [0]
    apply = fused_layers.ConvReLUPoolFunction.apply

    def counted(*args: Any) -> Any:
        calls[0] += 1
        return apply(*args)

    monkeypatch.setattr(fused_layers.ConvReLUPoolFunction, "apply", counted)
    return calls


def test_a_stage_is_fused_and_equals_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, modules = count(monkeypatch), stage()
    x = torch.randn(3, 2, 9, 8)
    found = fused_layers.run(modules, x)
    assert calls == [1]
    torch.testing.assert_close(found, torch.nn.Sequential(*modules)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("needs_x", [True, False])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")])
def test_only_what_is_needed_gets_a_gradient(needs_x: bool, frozen: tuple[str, ...]) -> None:
    fused_stage, layered = stage(), stage()
    x = torch.randn(3, 2, 9, 8)
    results = []
    for modules, run in ((fused_stage, fused_layers.run), (layered, lambda m, v: torch.nn.Sequential(*m)(v))):
        leaf = x.clone().requires_grad_(needs_x)
        for name in frozen:
            getattr(modules[0], name).requires_grad_(False)
        y = run(modules, leaf)
        if y.requires_grad:
            y.square().sum().backward()
        results.append([leaf.grad, *(parameter.grad for parameter in modules[0].parameters())])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_hook_sees_its_own_layers_output(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, modules = count(monkeypatch), stage()
    seen: list[Any] = []
    handle = modules[index].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    x = torch.randn(3, 2, 8, 8)
    fused_layers.run(modules, x)
    assert calls == [0]
    assert seen == [(3, 4, 4, 4) if index == 2 else (3, 4, 8, 8)]
    handle.remove()
    fused_layers.run(modules, x)
    assert calls == [1]


@pytest.mark.parametrize(
    "modules",
    [
        stage(stride=2),
        stage(dilation=2),
        stage(groups=2),
        stage(padding=(1, 0)),
        stage(padding_mode="reflect"),
        [*stage()[:2], layers.MaxPool2d(3)],
        [*stage()[:2], layers.MaxPool2d(2, ceil_mode=True)],
        [*stage()[:2], layers.MaxPool2d(2, stride=1)],
        [*stage()[:2], torch.nn.MaxPool2d(2)],
        [torch.nn.Conv2d(2, 4, 3), *stage()[1:]],
    ],
)
def test_other_options_go_layer_by_layer(modules: list[torch.nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count(monkeypatch)
    x = torch.randn(3, 2, 9, 8)
    torch.testing.assert_close(fused_layers.run(modules, x), torch.nn.Sequential(*modules)(x))
    assert calls == [0]


@pytest.mark.parametrize("padding", ["same", "valid", 0, 2, (1, 1)])
def test_paddings_that_fuse(padding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, modules = count(monkeypatch), stage(padding=padding)
    x = torch.randn(3, 2, 9, 8)
    torch.testing.assert_close(fused_layers.run(modules, x), torch.nn.Sequential(*modules)(x), rtol=1e-5, atol=1e-6)
    assert calls == [1]


def test_a_replaced_operation_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnn_lightning.ops import activation

    calls, modules = count(monkeypatch), stage()
    seen: list[Any] = []
    original = activation.relu

    def relu(x: Any) -> Any:
        seen.append(x.shape)
        return original(x)

    monkeypatch.setattr(activation, "relu", relu)
    fused_layers.run(modules, torch.randn(3, 2, 8, 8))
    assert calls == [0]
    assert seen


def test_the_output_may_be_changed_in_place_and_the_weight_may_not() -> None:
    modules, plain = stage(), stage()
    x = torch.randn(3, 2, 8, 8)
    fused_layers.run(modules, x).mul_(2).sum().backward()
    (torch.nn.Sequential(*plain)(x) * 2).sum().backward()
    torch.testing.assert_close(modules[0].weight.grad, plain[0].weight.grad, rtol=1e-4, atol=1e-4)
    y = fused_layers.run(modules, x)
    with torch.no_grad():
        modules[0].weight.add_(1)  # type: ignore[operator]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_float32_is_as_near_to_the_truth_as_torch() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(8, 3, 20, 20), torch.randn(16, 3, 3, 3), torch.randn(16)
    truth = reference(x.double(), weight.double(), bias.double(), 1)
    found, *_ = fused.conv_relu_pool(x.numpy(), weight.numpy(), bias.numpy(), paddings=[1])
    native = reference(x, weight, bias, 1)
    assert (torch.from_numpy(found) - truth).abs().mean() <= 1.5 * (native - truth).abs().mean()


def test_neighbouring_stages_become_one_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, modules = count(monkeypatch), [*stage(), layers.Conv2d(4, 3, 3), layers.ReLU(), layers.MaxPool2d(2)]
    x = torch.randn(3, 2, 12, 13)
    torch.testing.assert_close(fused_layers.run(modules, x), torch.nn.Sequential(*modules)(x), rtol=1e-5, atol=1e-6)
    assert calls == [1]
    modules[3].register_forward_hook(lambda *_: None)
    fused_layers.run(modules, x)
    assert calls == [2], "the watched stage goes layer by layer, the other is still fused"


def test_without_gradients_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    op = fused.conv_relu_pool

    def spy(*arrays: Any, **options: Any) -> Any:
        seen.append(options["keep"])
        return op(*arrays, **options)

    monkeypatch.setattr(fused, "conv_relu_pool", spy)
    modules, x = stage(), torch.randn(3, 2, 8, 8)
    with torch.no_grad():
        found = fused_layers.run(modules, x)
    torch.testing.assert_close(found, fused_layers.run(modules, x))
    assert seen == [False, True]


def test_copies_of_a_stage_fuse_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, modules = count(monkeypatch), copy.deepcopy(stage())
    fused_layers.run(modules, torch.randn(3, 2, 8, 8))
    assert calls == [1]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_change_in_place_before_the_backward_of_a_chain_is_taken_as_torch_takes_it(inplace: bool) -> None:
    torch.manual_seed(0)
    native = build_net("simple_cnn", image_size=8, channels=(2, 3), hidden=4, num_classes=2).double()
    for module in native.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = inplace
    chain = copy.deepcopy(native)
    swap_layers(chain, "numpy")
    names = ["0", *(name for name, _ in native.named_parameters())]
    choices = [set(), {"0"}, *({name} for name in names), *(set(names) - {name} for name in names)]
    seen = assert_refused_alike(chain, native, (torch.randn(3, 1, 8, 8, dtype=torch.float64),), choices)
    assert True in seen
    assert False in seen


def test_a_tool_that_records_operators_records_those_of_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(args[0] if function is torch.ops.cnn_lightning.call.default else None)
            return function(*args, **(kwargs or {}))

    calls, modules, x = count(monkeypatch), stage(), torch.randn(3, 2, 8, 8)
    seen: list[Any] = []
    with Mode():
        fused_layers.run(modules, x)
    assert [name.rpartition(":")[2] for name in seen if name] == ["conv2d", "relu", "max_pool2d"]
    assert calls == [0]
