"""Losses against torch under random options, at infinities and NaN, and where torch's rules are odd."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from cnn_lightning.layers import loss as layers
from tests.duck import Duck
from tests.tiers import both_tiers

tier = both_tiers(__name__)

INF, NAN = float("inf"), float("nan")


def both(ours: nn.Module, native: nn.Module, *inputs: torch.Tensor) -> None:
    """Equal values, and equal gradients of every input that requires one."""
    results = []
    for module in (ours, native):
        leaves = [value.detach().clone().requires_grad_(value.requires_grad) for value in inputs]
        value = module(*leaves)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
        results.append((value.detach(), *torch.autograd.grad(value, wanted, upstream)))
    for ours_result, native_result in zip(*results, strict=True):
        torch.testing.assert_close(ours_result, native_result, rtol=1e-10, atol=1e-12, equal_nan=True)


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """Options, scores and targets: any rank, sizes from 0, targets as indices (some ignored) or probabilities."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    classes = draw(st.integers(1, 6))
    rank = draw(st.integers(1, 4))
    shape = [classes] if rank == 1 else [draw(st.integers(0, 4)), classes, *[draw(st.integers(0, 3))] * (rank - 2)]
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.1, 3.0, 300.0]))
    if draw(st.booleans()) and x.dim() > 1:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    options: dict[str, Any] = {
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0, -1.0])),
        "weight": torch.rand(classes, generator=generator, dtype=torch.float64) if draw(st.booleans()) else None,
    }
    if draw(st.booleans()):
        target = torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()
    else:
        target = torch.randint(classes, [*shape[:1], *shape[2:]] if rank > 1 else [], generator=generator)
        options["ignore_index"] = draw(st.sampled_from([-100, -1, 0, 200]))
        if draw(st.booleans()):
            mask = torch.rand(target.shape, generator=generator) < draw(st.sampled_from([0.3, 1.0]))
            target = target.masked_fill(mask, options["ignore_index"])
    return options, x.requires_grad_(), target


@settings(max_examples=300)
@given(problem=problems())
def test_cross_entropy(problem: tuple[dict[str, Any], torch.Tensor, torch.Tensor]) -> None:
    options, x, target = problem
    both(layers.CrossEntropyLoss(**options), nn.CrossEntropyLoss(**options), x, target)


@settings(max_examples=150)
@given(problem=problems())
def test_nll(problem: tuple[dict[str, Any], torch.Tensor, torch.Tensor]) -> None:
    options, x, target = problem
    assume(not target.is_floating_point())
    del options["label_smoothing"]
    x = x.detach().contiguous().requires_grad_()  # torch's own refuses other strides
    both(layers.NLLLoss(**options), nn.NLLLoss(**options), x, target)


ROWS = torch.tensor(
    [[1e4, -1e4, 0], [-INF, 0, 1], [0, -INF, -INF], [INF, 0, 1], [NAN, 0, 1], [-1000, -1001, -1002], [0, 0, 0]],
    dtype=torch.float64,
)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, [0.0, 1.0, 2.0]])
@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("target", [0, 1, -100])
def test_special_scores(target: int, reduction: str, weight: list[float] | None, smoothing: float) -> None:
    options: dict[str, Any] = {
        "reduction": reduction,
        "label_smoothing": smoothing,
        "weight": None if weight is None else torch.tensor(weight, dtype=torch.float64),
    }
    for row in ROWS:
        both(
            layers.CrossEntropyLoss(**options),
            nn.CrossEntropyLoss(**options),
            row[None].clone().requires_grad_(),
            torch.tensor([target]),
        )


def test_special_scores_against_probabilities() -> None:
    for row in ROWS:
        for target in ([0.2, 0.3, 0.5], [0.0, 1.0, 0.0]):
            probabilities = torch.tensor([target], dtype=torch.float64).requires_grad_()
            both(layers.CrossEntropyLoss(), nn.CrossEntropyLoss(), row[None].clone().requires_grad_(), probabilities)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_targets_of_other_types_and_shapes(reduction: str) -> None:
    x = torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    for target in (
        torch.tensor([0, 4, 2, 1], dtype=torch.uint8),
        torch.rand(4, 5, dtype=torch.float64),
    ):
        both(layers.CrossEntropyLoss(reduction=reduction), nn.CrossEntropyLoss(reduction=reduction), x, target)
    row = x[0].detach()  # without a gradient, for which torch refuses a target of shape (1,)
    for ours, native in ((layers.CrossEntropyLoss, nn.CrossEntropyLoss), (layers.NLLLoss, nn.NLLLoss)):
        found, expected = (layer(reduction=reduction)(row, torch.tensor([3])) for layer in (ours, native))
        torch.testing.assert_close(found, expected)
    ignoring: dict[str, Any] = {"reduction": reduction, "ignore_index": 255}
    target = torch.tensor([0, 255, 2, 255], dtype=torch.uint8)
    both(layers.CrossEntropyLoss(**ignoring), nn.CrossEntropyLoss(**ignoring), x, target)


@pytest.mark.parametrize("pair", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_probabilities_of_another_dtype_are_promoted(pair: tuple[torch.dtype, torch.dtype]) -> None:
    x, target = torch.randn(4, 5).to(pair[0]), torch.rand(4, 5).to(pair[1])
    found, expected = layers.CrossEntropyLoss()(x, target), nn.CrossEntropyLoss()(x, target)
    torch.testing.assert_close(found, expected)
    weight = torch.rand(5).to(pair[1])
    found = layers.CrossEntropyLoss(weight)(x, target.to(pair[0]))
    torch.testing.assert_close(found, nn.CrossEntropyLoss(weight)(x, target.to(pair[0])))


@pytest.mark.parametrize("autocast", [True, False])
def test_half_scores_under_autocast_give_a_float32_loss(autocast: bool) -> None:
    x, target = torch.randn(4, 5).bfloat16(), torch.tensor([0, 1, 2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for ours, native in (
            (layers.CrossEntropyLoss(), nn.CrossEntropyLoss()),
            (layers.CrossEntropyLoss(torch.rand(5).to(x.dtype)), nn.CrossEntropyLoss()),
            (layers.NLLLoss(), nn.NLLLoss()),
        ):
            assert ours(x, target).dtype == native(x, target).dtype
        assert layers.MSELoss()(x, x).dtype == nn.MSELoss()(x, x).dtype


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("first", "second"), [((4, 5), (5,)), ((4, 1), (1, 5)), ((2, 3), ()), ((0, 5), (5,))])
def test_mse_broadcasts_with_torchs_warning(first: tuple[int, ...], second: tuple[int, ...], reduction: str) -> None:
    x = torch.randn(first, dtype=torch.float64).requires_grad_()
    target = torch.randn(second, dtype=torch.float64).requires_grad_()
    with pytest.warns(UserWarning, match="different to the input size"):
        both(layers.MSELoss(reduction=reduction), nn.MSELoss(reduction=reduction), x, target)


def test_mse_promotes() -> None:
    x = torch.randn(4, 5)
    for target in (torch.ones(4, 5).long(), torch.ones(4, 5).double(), torch.ones(4, 5).bool()):
        found, expected = layers.MSELoss()(x, target), nn.MSELoss()(x, target)
        torch.testing.assert_close(found, expected)


def test_mse_of_special_values() -> None:
    x = torch.tensor([INF, -INF, NAN, 1e200, 0.0], dtype=torch.float64).requires_grad_()
    for reduction in ("mean", "sum", "none"):
        both(layers.MSELoss(reduction=reduction), nn.MSELoss(reduction=reduction), x, torch.zeros(5).double())
        both(layers.MSELoss(reduction=reduction), nn.MSELoss(reduction=reduction), x, x.detach())


def test_a_class_out_of_range_names_the_target() -> None:
    with pytest.raises(IndexError, match="target: expected classes from 0 to 4, got 7"):
        layers.CrossEntropyLoss()(torch.zeros(2, 5), torch.tensor([1, 7]))


def test_without_the_check_nothing_waits_for_the_device() -> None:
    """A device array refuses truth values: the losses must not ask for one."""
    loss = import_module("cnn_lightning.ops.loss")  # the formulas, which devices run

    generator = np.random.default_rng(0)
    logits, target, weight = generator.standard_normal((3, 5, 4)), generator.integers(5, size=(3, 4)), np.ones(5)
    ducks = Duck(logits), Duck(target), Duck(weight)
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "sum"}):
        found = loss.cross_entropy(*ducks, check_target=False, **options)
        expected = loss.cross_entropy(logits, target, weight, **options)
        np.testing.assert_array_equal(found.array, expected)
        grad_y = np.asarray(1.0)
        np.testing.assert_array_equal(
            loss.cross_entropy_backward(Duck(grad_y), *ducks, **options).array,
            loss.cross_entropy_backward(grad_y, logits, target, weight, **options),
        )
    assert isinstance(loss.nll_loss(*ducks, check_target=False), Duck)
    assert isinstance(loss.nll_loss_backward(Duck(np.asarray(1.0)), *ducks), Duck)
    soft = Duck(np.abs(logits))
    assert isinstance(loss.cross_entropy(ducks[0], soft, ducks[2], check_target=False), Duck)
    assert isinstance(loss.cross_entropy_backward_target(Duck(np.asarray(1.0)), ducks[0], soft, ducks[2]), Duck)
    assert isinstance(loss.mse_loss(ducks[0], soft), Duck)
    assert isinstance(loss.mse_loss_backward(Duck(np.asarray(1.0)), ducks[0], soft), Duck)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=["hard", "smooth"])
def test_float32_is_as_near_to_the_truth_as_torch(options: dict[str, Any], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 100, generator=generator) * scale
    target = torch.randint(100, (512,), generator=generator)

    def run(module: nn.Module, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.to(dtype).clone().requires_grad_()
        value = module(leaf, target)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach().double(), gradient.double()

    native, ours = (
        nn.CrossEntropyLoss(reduction="none", **options),
        layers.CrossEntropyLoss(reduction="none", **options),
    )
    truth, theirs, mine = run(native, torch.float64), run(native, torch.float32), run(ours, torch.float32)
    for true, their, my in zip(truth, theirs, mine, strict=True):
        assert (my - true).abs().max() <= 1.5 * (their - true).abs().max()


# ---- losses of numbers

REDUCTIONS = ("mean", "sum", "none")
ODD = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1e-300, 1e200, INF, -INF, NAN], dtype=torch.float64)


def every_pair(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, target = torch.meshgrid(first, second, indexing="ij")
    return x.clone().requires_grad_(), target.clone().requires_grad_()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("beta", [None, 0.0, 0.5, 1, INF], ids=str)
def test_differences_at_kinks_and_special_values(beta: float | None, reduction: str) -> None:
    options: dict[str, Any] = {"reduction": reduction} | ({} if beta is None else {"beta": beta})
    kinds: Any = (layers.L1Loss, nn.L1Loss) if beta is None else (layers.SmoothL1Loss, nn.SmoothL1Loss)
    ours, native = (kind(**options) for kind in kinds)
    for x in (*ODD, ODD):
        for target in (*ODD, ODD):
            if x.shape == target.shape:
                both(ours, native, x.clone().requires_grad_(), target.clone().requires_grad_())


@pytest.mark.parametrize("options", [{}, {"beta": 0.0}, {"beta": 2.0}], ids=str)
@pytest.mark.parametrize(("first", "second"), [((4, 5), (5,)), ((4, 1), (1, 5)), ((2, 3), ()), ((0, 5), (5,))])
def test_differences_broadcast_with_torchs_warning(
    first: tuple[int, ...], second: tuple[int, ...], options: dict[str, Any]
) -> None:
    x = torch.randn(first, dtype=torch.float64).requires_grad_()
    target = torch.randn(second, dtype=torch.float64).requires_grad_()
    with pytest.warns(UserWarning, match="different to the input size"):
        both(layers.SmoothL1Loss(**options), nn.SmoothL1Loss(**options), x, target)
    with pytest.warns(UserWarning, match="different to the input size"):
        both(layers.L1Loss(), nn.L1Loss(), x, target)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_l1_of_integers(dtype: torch.dtype, reduction: str) -> None:
    x, target = torch.tensor([3, 1, 7]).to(dtype), torch.tensor([1, 1, 9]).to(dtype)
    found, expected = (kind(reduction=reduction)(x, target) for kind in (layers.L1Loss, nn.L1Loss))
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


CHANCES = torch.tensor([0.0, 1.0, 0.5, 1e-300, 1e-50, 1 - 1e-16, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.0, INF, NAN, 3.0, 1.0]], ids=str)
def test_binary_cross_entropy_at_the_ends(weight: list[float] | None, reduction: str) -> None:
    """Logarithms end at -100, and the divisor of the gradient at 1e-12."""
    options: dict[str, Any] = {"reduction": reduction}
    options["weight"] = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    both(layers.BCELoss(**options), nn.BCELoss(**options), *every_pair(CHANCES, CHANCES))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("pos_weight", [None, 0.0, 1.0, 2.5, INF], ids=str)
def test_binary_cross_entropy_of_special_scores(pos_weight: float | None, reduction: str) -> None:
    options: dict[str, Any] = {"reduction": reduction}
    options["pos_weight"] = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float64)
    scores = torch.cat([ODD, torch.tensor([1000.0, -1000.0, 40.0, -40.0], dtype=torch.float64)])
    both(layers.BCEWithLogitsLoss(**options), nn.BCEWithLogitsLoss(**options), *every_pair(scores, ODD[:6]))


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("input", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_loss_of_scores_has_the_dtype_of_its_targets(input: torch.dtype, target: torch.dtype, autocast: bool) -> None:
    x, t = torch.randn(4, 5).to(input), torch.rand(4, 5).to(target)
    results = []
    for kind in (layers.BCEWithLogitsLoss, nn.BCEWithLogitsLoss):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            leaves = x.clone().requires_grad_(), t.clone().requires_grad_()
            loss = kind()(*leaves)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool], ids=str)
def test_weights_of_other_dtypes(dtype: torch.dtype) -> None:
    weight = torch.tensor([1, 0, 2, 1]).to(dtype)
    pair = torch.rand(3, 4, dtype=torch.float64).requires_grad_(), torch.rand(3, 4, dtype=torch.float64)
    both(layers.BCELoss(weight), nn.BCELoss(weight), *pair)
    both(layers.BCEWithLogitsLoss(weight), nn.BCEWithLogitsLoss(weight), *pair)
    if dtype != torch.bool:
        weights: dict[str, Any] = {"pos_weight": weight}
        both(layers.BCEWithLogitsLoss(**weights), nn.BCEWithLogitsLoss(**weights), *pair)


@pytest.mark.parametrize("kind", [layers.BCELoss, layers.BCEWithLogitsLoss, nn.BCELoss, nn.BCEWithLogitsLoss])
def test_a_weight_that_needs_a_gradient_is_refused(kind: type[nn.Module]) -> None:
    weight = torch.ones(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="weight"):
        kind(weight)(torch.rand(3, 4), torch.rand(3, 4))


def test_losses_of_numbers_wait_for_no_device() -> None:
    loss = import_module("cnn_lightning.ops.loss")
    x, target, one = (Duck(array) for array in (np.full((3, 4), 0.3), np.full((3, 4), 0.6), np.asarray(1.0)))
    assert isinstance(loss.binary_cross_entropy(x, target, check_target=False), Duck)
    for name in ("l1_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits"):
        assert isinstance(getattr(loss, name)(x, target), Duck)
    for name in ("l1_loss", "smooth_l1_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"):
        assert isinstance(getattr(loss, f"{name}_backward")(one, x, target), Duck)
