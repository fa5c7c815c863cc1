"""Attention against torch: every pair of options, masks that hide, containers that would compute past a layer."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cnn_lightning import layers, swap_layers
from cnn_lightning.layers import bridge
from cnn_lightning.ops import attention
from tests.tiers import both_tiers

tier = both_tiers(__name__)

LENGTH, BATCH, HEADS, FEATURES = 3, 2, 2, 8
OPTIONS: dict[str, tuple[Any, ...]] = {
    "batched": (True, False),
    "batch_first": (False, True),
    "bias": (True, False),
    "add_bias_kv": (False, True),
    "add_zero_attn": (False, True),
    "dropout": (0.0, 0.4),
    "inputs": ("one", "three", "of other sizes"),
    "need_weights": (True, False),
    "average_attn_weights": (True, False),
    "attn_mask": (None, "bool", "float", "bool of heads", "float of heads"),
    "key_padding_mask": (None, "bool", "float"),
    "is_causal": (False, True),
}


def choices(count: int) -> list[dict[str, Any]]:
    """Random combinations, in which every pair of values is met many times."""
    generator = torch.Generator().manual_seed(0)

    def one(values: tuple[Any, ...]) -> Any:
        return values[int(torch.randint(len(values), (), generator=generator))]

    return [{name: one(values) for name, values in OPTIONS.items()} for _ in range(count)]


def arguments(choice: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor], dict[str, Any]]:
    """Options of the layer, its query, key and value, and its other arguments."""
    generator = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def mask(kind: str | None, *shape: int) -> Tensor | None:
        hides = torch.rand(shape, generator=generator) < 0.3
        hides[..., 0] = False  # of a query that sees nothing: see below
        return None if kind is None else hides if kind.startswith("bool") else numbers(*shape)

    options = {"embed_dim": FEATURES, "num_heads": HEADS, "dtype": torch.float64}
    options |= {name: choice[name] for name in ("batch_first", "bias", "add_bias_kv", "add_zero_attn", "dropout")}
    sizes = {"one": 3 * [FEATURES], "three": 3 * [FEATURES], "of other sizes": [FEATURES, 5, 3]}[choice["inputs"]]
    keys = LENGTH if choice["inputs"] == "one" else LENGTH + 1
    if choice["inputs"] == "of other sizes":
        options |= {"kdim": sizes[1], "vdim": sizes[2]}
    given = []
    for long, size in zip((LENGTH, keys, keys), sizes, strict=True):
        batched = (BATCH, long, size) if choice["batch_first"] else (long, BATCH, size)
        given.append(numbers(*(batched if choice["batched"] else (long, size))))
    batch = BATCH if choice["batched"] else 1
    of_heads = [batch * HEADS] * ("heads" in (choice["attn_mask"] or ""))
    of_batch = [BATCH] * choice["batched"]
    rest = {name: choice[name] for name in ("need_weights", "average_attn_weights", "is_causal")}
    rest["attn_mask"] = mask(choice["attn_mask"], *of_heads, LENGTH, keys)
    rest["key_padding_mask"] = mask(choice["key_padding_mask"], *of_batch, keys)
    return options, given, rest


def outcome(module: nn.Module, given: list[Tensor], rest: dict[str, Any], same: bool) -> Any:
    """Both outputs and the gradients of inputs, parameters and a mask of numbers; or the type of the exception."""
    leaves = [x.clone().requires_grad_() for x in given[: 1 if same else 3]]
    inputs = leaves * 3 if same else leaves
    rest = {name: value.clone() if isinstance(value, Tensor) else value for name, value in rest.items()}
    mask = rest["attn_mask"]
    if mask is not None and mask.is_floating_point():
        leaves.append(mask.requires_grad_())
    torch.manual_seed(2)
    try:
        y, weights = module(*inputs, **rest)
    except Exception as error:
        return type(error)
    outputs = [y] if weights is None else [y, weights]
    upstream = [torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape) for out in outputs]
    wanted = [*leaves, *module.parameters()]
    return y, weights, *torch.autograd.grad(outputs, wanted, upstream, allow_unused=True)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_every_option() -> None:
    refused = 0
    for choice in choices(700):
        options, given, rest = arguments(choice)
        native = nn.MultiheadAttention(**options)
        ours = layers.MultiheadAttention(**options)
        ours.load_state_dict(native.state_dict())
        found, expected = (outcome(each, given, rest, choice["inputs"] == "one") for each in (ours, native))
        if isinstance(expected, type):
            assert found is expected, choice
            refused += 1
            continue
        assert found[0].stride() == expected[0].stride(), choice
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None), choice
            if b is not None:
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=str(choice))
    assert refused < 300


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_query_that_may_look_nowhere(need_weights: bool) -> None:
    """NaN beside weights, 0 without, as in torch."""
    native = nn.MultiheadAttention(FEATURES, HEADS, dtype=torch.float64)
    ours = layers.MultiheadAttention(FEATURES, HEADS, dtype=torch.float64)
    ours.load_state_dict(native.state_dict())
    x = torch.randn(LENGTH, BATCH, FEATURES, dtype=torch.float64)
    hides = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])
    rest = {"attn_mask": hides, "need_weights": need_weights, "key_padding_mask": None}
    found, expected = (outcome(each, [x], rest, same=True) for each in (ours, native))
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize("need_weights", [True, False])
def test_evaluation_without_gradients_equals_torchs_one_operator(need_weights: bool) -> None:
    native = nn.MultiheadAttention(FEATURES, HEADS, batch_first=True).eval()
    ours = layers.MultiheadAttention(FEATURES, HEADS, batch_first=True).eval()
    ours.load_state_dict(native.state_dict())
    x = torch.randn(BATCH, LENGTH, FEATURES)
    hides = torch.tensor([[False, False, True], [False, False, False]])
    with torch.no_grad():
        found, expected = (each(x, x, x, key_padding_mask=hides, need_weights=need_weights) for each in (ours, native))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    if need_weights:
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)


# ---- the formula


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_the_formula_is_torchs_function(mask: str | None, scale: float | None, is_causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64) for shape in ((4, 5), (6, 5), (6, 2))
    )
    looks = torch.rand(4, 6, generator=generator) < 0.6
    looks[1] = False
    given = None if mask is None else looks if mask == "bool" else torch.randn(3, 4, 6, dtype=torch.float64)
    arrays: tuple[Any, Any, Any] = q.numpy(), k.numpy(), v.numpy()
    hides: Any = None if given is None else given.numpy()
    if mask and is_causal:
        with pytest.raises(RuntimeError, match="mask: expected none with is_causal"):
            attention.scaled_dot_product_attention(*arrays, hides, is_causal=True)
        return
    y, weights = attention.scaled_dot_product_attention(*arrays, hides, scale=scale, is_causal=is_causal)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    expected = functional.scaled_dot_product_attention(q, k, v, given, is_causal=is_causal, scale=scale)
    torch.testing.assert_close(torch.from_numpy(y), expected.detach(), rtol=1e-11, atol=1e-12)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    found = attention.scaled_dot_product_attention_backward(upstream.numpy(), *arrays, weights, scale=scale)
    for a, b in zip(found, torch.autograd.grad(expected, leaves, upstream), strict=False):
        torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-11, atol=1e-12)


# ---- containers


class Names(bridge.Listener):
    """The formulas that were called."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def enter(self, op: Any, arrays: Any, options: dict[str, Any]) -> None:
        self.names.append(op.__name__)


def encoder(norm_first: bool) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(FEATURES, HEADS, 16, batch_first=True, norm_first=norm_first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # norm_first: no nested tensors
        return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(FEATURES))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(("training", "gradients"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("hidden", [None, "padding", "mask"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_runs_its_swapped_layers(
    hidden: str | None, training: bool, gradients: bool, norm_first: bool
) -> None:
    native = encoder(norm_first).double().train(training)
    ours = copy.deepcopy(native)
    swap_layers(ours, "numpy")
    x = torch.randn(BATCH, LENGTH, FEATURES, dtype=torch.float64)
    padding = torch.tensor([[False, False, True], [False, False, False]]) if hidden == "padding" else None
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=x.dtype) if hidden == "mask" else None
    with torch.set_grad_enabled(gradients), bridge.watch(Names()) as heard:
        torch.manual_seed(3)
        found = ours(x, mask=mask, src_key_padding_mask=padding)
    with torch.set_grad_enabled(gradients):
        torch.manual_seed(3)
        expected = native(x, mask=mask, src_key_padding_mask=padding)
    if padding is not None and not training and not gradients:
        found, expected = found[~padding], expected[~padding]  # torch's nested tensors have 0 in padding
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert heard.names.count("scaled_dot_product_attention") == 2
    assert heard.names.count("linear") == 2 * 4


def test_an_encoder_that_is_swapped_back_is_torchs_own() -> None:
    net = encoder(norm_first=False).eval()
    kinds, state = [type(module) for module in net.modules()], [dict(vars(module)) for module in net.modules()]
    swap_layers(net, "numpy")
    assert not net.use_nested_tensor
    swap_layers(net, "torch")
    assert [type(module) for module in net.modules()] == kinds
    assert net.use_nested_tensor
    assert [set(vars(module)) for module in net.modules()] == [set(each) for each in state]


def test_a_container_without_numpy_layers_stays_torchs() -> None:
    net = nn.Sequential(encoder(norm_first=False), nn.ReLU())
    swap_layers(net, {"1": "numpy"})
    assert type(net[0]) is nn.TransformerEncoder
    assert type(net[0].layers[0]) is nn.TransformerEncoderLayer
    swap_layers(net, {"0.layers.1.self_attn": "numpy"})
    assert type(net[0].layers[0]) is nn.TransformerEncoderLayer
    assert isinstance(net[0].layers[1].self_attn, layers.MultiheadAttention)
    assert type(net[0].layers[1]) is not nn.TransformerEncoderLayer
