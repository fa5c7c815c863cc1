"""Who began the NaN: the operation that made the first number that is not finite is named, and what it was made of."""

import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from cnn_lightning.callbacks import StopAtNonFinite
from cnn_lightning.classifier import Classifier
from cnn_lightning.classifier.nonfinite import FILE
from cnn_lightning.cli import main
from cnn_lightning.data import Digits
from cnn_lightning.errors import EverywhereError, UserError
from cnn_lightning.nonfinite import Finding, saved, search
from cnn_lightning.ops import activation, norm
from cnn_lightning.swap import swap_layers
from tests.processes import noise, ranks

BOTH = pytest.mark.parametrize("layers", ["torch", "numpy"])
SIZE = 4
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*in eval mode.*",
    "ignore:.*no .validation_step.*",
    "ignore:var.*degrees of freedom",
)


class Run(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def pictures() -> Tensor:
    return torch.randn(SIZE, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def chain(**layers: nn.Module | Callable[[Tensor], Tensor]) -> nn.Sequential:
    """Layers one after another, by name."""
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer if isinstance(layer, nn.Module) else Run(layer))
    return net


def linear(inputs: int, outputs: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


def conv() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(2, 3, 3)


def who(
    net: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor] = lambda y: y.square().mean(),
    layers: Any = "torch",
    autocast: torch.dtype | None = None,
) -> Finding:
    found = nobody(net, x, loss, layers, autocast)
    assert found is not None
    return found


def nobody(
    net: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor] = lambda y: y.square().mean(),
    layers: Any = "torch",
    autocast: torch.dtype | None = None,
) -> Finding | None:
    if layers == "numpy":
        swap_layers(net, layers)

    def forward() -> Tensor:
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            return loss(net(x))

    return search(net, [x], forward, lambda value: value.backward())


# ---- forward


@BOTH
def test_a_bad_picture_is_the_beginning_and_has_its_number(layers: str) -> None:
    x = pictures()
    x[2, 1, 0, 3] = math.nan
    found = who(chain(conv=conv(), norm=nn.BatchNorm2d(3), relu=nn.ReLU()), x, layers=layers)
    assert (found.seen_in, found.cause, found.picture) == (
        "the input",
        "nan at [2, 1, 0, 3]",
        "2 of the batch's 4 (0 to 3)",
    )
    assert not found.operation


@BOTH
def test_a_bad_weight_is_the_beginning(layers: str) -> None:
    net = chain(conv=conv(), relu=nn.ReLU(), flat=nn.Flatten(), end=linear(12, 2))
    net.end.weight.data[1, 5] = math.nan  # type: ignore[union-attr, operator]
    found = who(net, pictures(), layers=layers)
    assert found.seen_in == "the weights of layer 'end' (end.weight)"
    assert found.cause == "nan at [1, 5]"


@BOTH
def test_an_infinite_weight_is_the_beginning_and_the_layer_that_makes_nan_of_it_is_named(layers: str) -> None:
    net = chain(conv=conv(), norm=nn.BatchNorm2d(3), relu=nn.ReLU())
    net.conv.weight.data[1, 1, 1, 1] = math.inf  # type: ignore[union-attr, operator]
    found = who(net, pictures(), layers=layers)
    assert found.seen_in == "the weights of layer 'conv' (conv.weight)"
    assert found.cause == "inf at [1, 1, 1, 1]"
    assert found.then.startswith("nan in the output of layer 'norm' (BatchNorm2d), ")
    assert "norm: inf - inf: its input has infinite numbers (ops/norm.py:" in found.then


@BOTH
@pytest.mark.parametrize("norm_", [nn.LayerNorm(32, eps=0), nn.GroupNorm(2, 2, eps=0)], ids=["layer", "group"])
def test_a_variance_of_zero_has_its_row_and_its_line(norm_: nn.Module, layers: str) -> None:
    x = pictures()
    x[1] = 3.0
    flat = isinstance(norm_, nn.LayerNorm)
    before, after = (nn.Flatten(), nn.Identity()) if flat else (nn.Identity(), nn.Flatten())
    found = who(chain(before=before, norm=norm_, after=after, end=linear(32, 2)), x, layers=layers)
    assert found.layer == "norm"
    assert "variance 0 and eps 0 in" in found.cause
    assert found.line.startswith("ops/norm.py:")
    assert found.line.endswith("y = (x - mean) / np.sqrt(var + eps)")
    assert found.picture == "1 of the batch's 4 (0 to 3)"


def test_batch_norm_names_the_channel_without_variance_and_all_pictures() -> None:
    """torch wants an eps above 0; this one is 0 in float32."""
    net = chain(
        conv=conv(), zero=lambda x: x * torch.tensor([1.0, 1, 0])[:, None, None], norm=nn.BatchNorm2d(3, 1e-300)
    )
    found = who(net, pictures())
    assert (found.layer, found.operation) == ("norm", "native_batch_norm")
    assert found.cause == "variance 0 and eps 1e-300 in channel 2"
    assert found.picture == "all 4 of the batch"


def test_batch_norm_of_one_value_a_channel_says_so() -> None:
    x = pictures()[:1, :, 0, 0]

    def normalised(x: Tensor) -> Tensor:
        return torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-300)[0]

    found = who(chain(norm=normalised), x)
    assert found.cause == "variance 0 of one value ((1, 2)) and eps 1e-300 in channel 0"


OPERATIONS: list[tuple[str, Callable[[Tensor], Tensor], str, str]] = [
    ("log", lambda x: (x * 0).log(), "log", "log of 0"),
    ("log of a negative number", lambda x: (x * 0 - 2).log(), "log", "log of -2"),
    ("sqrt", lambda x: (x * 0 - 4).sqrt(), "sqrt", "sqrt of -4"),
    ("0/0", lambda x: (x * 0) / (x * 0), "div", "0 / 0"),
    ("x/0", lambda x: (x * 0 + 3) / (x * 0), "div", "3 / 0"),
    ("rsqrt", lambda x: (x * 0).rsqrt(), "rsqrt", "rsqrt (1 / sqrt) of 0"),
    ("pow", lambda x: (x * 0) ** -1.5, "pow", "0 ** -1.5"),
    ("exp", lambda x: (x * 0 + 89).exp(), "exp", "overflow in float32: exp of 89 = 4.4896e+38 is beyond 3.4028e+38"),
    ("exp of more", lambda x: (x * 0 + 1e4).exp(), "exp", "overflow in float32: exp of 10000 is beyond 3.4028e+38"),
    ("mul", lambda x: (x * 0 + 1e30) * 1e10, "mul", "overflow in float32: 1e+30 * 1e+10 = 1e+40 is beyond 3.4028e+38"),
    ("acos", lambda x: (x * 0 + 2).acos(), "acos", "acos of 2"),
    ("var of one", lambda x: x[:, 0, 0, :1].var(1), "var", "0 / 0: the variance of one number, divided by 1 - 1"),
    ("mean of none", lambda x: x[:, 0, 0, :0].mean(1), "mean", "0 / 0: the mean of no numbers"),
]


@pytest.mark.parametrize(
    ("function", "operation", "cause"), [row[1:] for row in OPERATIONS], ids=[r[0] for r in OPERATIONS]
)
def test_an_operation_is_named_with_its_numbers(
    function: Callable[[Tensor], Tensor], operation: str, cause: str
) -> None:
    """The layer after it, which only passes on what it gets, is not named."""
    found = who(chain(conv=conv(), bad=function, after=lambda x: x * 2 + 1), pictures())
    assert (found.layer, found.operation, found.cause) == ("bad", operation, cause)
    assert found.seen_in == "the output of layer 'bad' (Run)"
    assert found.picture == "all 4 of the batch"


def test_infinities_that_meet_are_named_with_where_they_began() -> None:
    def bad(x: Tensor) -> Tensor:
        big = x.new_tensor([0.0, 0, 0, 1000])[:, None, None, None]
        return (x.abs() + big).exp() - (x.abs() + big).exp()

    found = who(chain(conv=conv(), bad=bad, after=lambda x: x * 2), pictures())
    assert (found.layer, found.operation) == ("bad", "exp")
    assert found.cause.startswith("overflow in float32: exp of 1000")
    assert found.then == "nan in the output of layer 'bad' (Run), sub: inf - inf"
    assert found.picture == "3 of the batch's 4 (0 to 3)"


def test_an_infinity_that_met_a_zero_is_said() -> None:
    net = chain(conv=conv(), big=lambda x: (x * 0 + 1e3).exp(), bad=lambda x: x * (x.isfinite() * 1.0))
    found = who(net, pictures())
    assert (found.layer, found.operation) == ("big", "exp")
    assert found.then == "nan in the output of layer 'bad' (Run), mul: inf * 0"


@BOTH
def test_an_overflow_in_half_precision_has_the_number_and_the_limit(layers: str) -> None:
    net = chain(flat=nn.Flatten(), one=linear(32, 3), end=linear(3, 2))
    net.one.weight.data.fill_(1000.0)  # type: ignore[union-attr, operator]
    net.one.bias.data.zero_()  # type: ignore[union-attr, operator]
    x = pictures().abs() * 0 + 1.0
    x[3] = 3.0
    found = who(net, x, lambda y: y.float().mean(), layers, torch.float16)
    assert found.layer == "one"
    assert found.cause.startswith("overflow in float16: 96000 is beyond 65504")
    assert found.picture == "3 of the batch's 4 (0 to 3)"


@BOTH
def test_a_masked_row_is_named_and_its_mask_is_no_fault_by_itself(layers: str) -> None:
    mask = torch.zeros(SIZE, 4)
    mask[2] = -math.inf
    net = chain(flat=nn.Flatten(), scores=linear(32, 4), mask=lambda x: x + mask, soft=nn.Softmax(1), end=linear(4, 2))
    found = who(net, pictures(), layers=layers)
    assert (found.layer, found.cause) == ("soft", "all 4 numbers of the row are -inf (row 2)")
    assert found.infinity == "from a constant of the step: -inf at [2, 0], and 3 more"
    assert found.line.startswith("ops/softmax.py:")
    assert found.picture == "2 of the batch's 4 (0 to 3)"


@BOTH
def test_a_mask_that_is_fine_is_not_blamed_for_what_another_operation_makes(layers: str) -> None:
    def masked(x: Tensor) -> Tensor:
        return x.masked_fill(torch.tensor([True, False, False, False]), -math.inf)

    net = chain(flat=nn.Flatten(), scores=linear(32, 4), mask=masked, soft=nn.Softmax(1), bad=lambda x: x / (x - x))
    found = who(net, pictures(), layers=layers)
    assert (found.layer, found.operation) == ("bad", "div")
    assert not found.infinity + found.then


def test_an_overflow_beside_the_minus_infinity_of_a_mask_is_the_beginning() -> None:
    def masked(x: Tensor) -> Tensor:
        return (x * 0 + 1000).masked_fill(torch.tensor([False, False, True, True]), -math.inf)

    net = chain(flat=nn.Flatten(), scores=linear(32, 4), mask=masked, bad=torch.exp)
    found = who(net, pictures())
    assert (found.layer, found.operation) == ("bad", "exp")
    assert found.cause == "overflow in float32: exp of 1000 is beyond 3.4028e+38"


@BOTH
def test_a_mask_alone_is_nothing_to_find(layers: str) -> None:
    mask = torch.tensor([0.0, 0, -math.inf, -math.inf])
    net = chain(flat=nn.Flatten(), scores=linear(32, 4), mask=lambda x: x + mask, soft=nn.Softmax(1))
    assert nobody(net, pictures(), layers=layers) is None


def test_a_nan_that_never_reaches_the_loss_is_not_blamed() -> None:
    def unused(x: Tensor) -> Tensor:
        (x * 0).log().sub_(x)
        return torch.where(x == x, x, (x * 0) / 0)

    net = chain(conv=conv(), unused=unused, bad=lambda x: x.sqrt())
    assert who(net, pictures()).layer == "bad"


@BOTH
def test_a_loss_over_no_target_is_said(layers: str) -> None:
    net, loss = chain(flat=nn.Flatten(), end=linear(32, 4)), nn.CrossEntropyLoss(ignore_index=1)
    swap_layers(net, layers, beside={"loss": loss})
    whole = nn.ModuleDict({"net": net, "loss": loss})
    x, target = pictures(), torch.ones(SIZE, dtype=torch.long)
    found = search(whole, [x, target], lambda: loss(net(x), target))
    assert found is not None
    assert found.layer == "loss"
    assert found.cause == "0 / 0: the mean over no target; all 4 are 1, which is ignored"
    assert found.line.startswith("ops/loss.py:")
    assert found.picture == "all 4 of the batch"


def test_in_place_operations_do_not_hide_the_beginning() -> None:
    def bad(x: Tensor) -> Tensor:
        y = x.clone()
        y[1].sub_(y[1]).log_()
        return y.mul_(2)

    found = who(chain(conv=conv(), bad=bad, drop=nn.Dropout(0.0, inplace=True)), pictures())
    assert (found.layer, found.operation, found.cause) == ("bad", "log", "log of 0")


def test_the_backward_of_an_in_place_operation_has_its_layer() -> None:
    """ReLU makes 0 of the infinity, so that the loss is finite, and the gradient is not."""

    def bad(x: Tensor) -> Tensor:
        y = x.clone()
        y[1].sub_(y[1]).log_()
        return y.mul_(2)

    found = who(chain(conv=conv(), bad=bad, relu=nn.ReLU(inplace=True)), pictures())
    assert (found.seen_in, found.cause) == ("the backward of layer 'bad' (Run)", "0 / 0")


# ---- backward


def test_the_slope_of_sqrt_at_zero_is_the_beginning() -> None:
    def loss(y: Tensor) -> Tensor:
        return (y - y.detach()).square().sum(1).sqrt().mean()

    found = who(chain(flat=nn.Flatten(), end=linear(32, 4)), pictures(), loss)
    assert found.backward
    assert found.what == "finite gradients, got NaN or infinity"
    assert found.operation == "div, in the backward of sqrt"
    assert found.cause == "0.25 / 0; sqrt' is infinite at 0"
    assert found.then == "nan in the backward of the step, outside of all layers, mul: inf * 0"


def test_the_slope_of_a_root_in_a_layer_names_the_layer_and_the_picture() -> None:
    x = pictures()
    x[2] = 0.0
    net = chain(flat=nn.Flatten(), end=nn.Linear(32, 4, bias=False), root=lambda y: y.abs().sqrt())
    found = who(net, x)
    assert found.seen_in == "the backward of layer 'root' (Run)"
    assert "0" in found.cause
    assert found.picture == "2 of the batch's 4 (0 to 3)"


def test_a_norm_by_hand_at_zero_is_found_and_torchs_own_is_fine() -> None:
    def shifted(y: Tensor) -> Tensor:
        return y - y.detach()

    net = chain(flat=nn.Flatten(), end=linear(32, 4))
    assert nobody(net, pictures(), lambda y: shifted(y).norm(dim=1).sum()) is None
    by_hand = who(net, pictures(), lambda y: ((shifted(y) ** 2).sum(1) ** 0.5).sum())
    assert by_hand.backward
    assert by_hand.cause == "0 ** -0.5; pow' is infinite at 0"


def test_a_branch_that_where_leaves_out_still_has_a_gradient() -> None:
    def bad(y: Tensor) -> Tensor:
        return torch.where(y > -math.inf, y, (y.abs() * 0 + 100).exp() * y)

    found = who(chain(flat=nn.Flatten(), end=linear(32, 4), bad=bad), pictures())
    assert found.seen_in == "the output of layer 'bad' (Run)"
    assert found.cause.startswith("overflow in float32: exp of 100")
    assert found.then == "nan in the backward of layer 'bad' (Run), mul: 0 * inf"


@BOTH
def test_an_overflow_in_a_weights_gradient_is_found(layers: str) -> None:
    net = chain(conv=conv(), relu=nn.ReLU(), flat=nn.Flatten(), end=nn.Linear(12, 2, bias=False))
    found = who(net, pictures(), lambda y: ((y - y.detach()) * 3e38).sum(), layers)
    assert found.backward
    assert found.layer == "end"
    assert found.cause.startswith("overflow in float32: ")
    assert found.line.startswith("ops/")
    assert "@" in found.line


@BOTH
def test_the_picture_of_a_weights_gradient_is_the_one_that_overflows_alone(layers: str) -> None:
    x = pictures()
    x[1] *= 1e20
    net = chain(flat=nn.Flatten(), end=nn.Linear(32, 2, bias=False))
    found = who(net, x, lambda y: ((y - y.detach()) * 1e19).sum(), layers)
    assert found.layer == "end"
    assert found.picture == "1 of the batch's 4 (0 to 3)"


# ---- formulas


def test_an_edited_formula_is_named_with_the_line_that_divides_by_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def relu(x: np.ndarray) -> np.ndarray:
        kept = x * (x > 0)
        share = kept / kept
        return share * x

    monkeypatch.setattr(activation, "relu", relu)
    found = who(chain(conv=conv(), act=nn.ReLU(), pool=nn.MaxPool2d(2)), pictures(), layers="numpy")
    assert (found.layer, found.operation) == ("act", "relu")
    assert found.line.startswith("test_nonfinite.py:")
    assert found.line.endswith(": share = kept / kept")


def test_an_edited_backward_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    right = norm.batch_norm_backward

    def batch_norm_backward(*args: Any, **options: Any) -> Any:
        grad_x, *others = right(*args, **options)
        grad_x = grad_x * 0 / (args[4][0] * 0)
        return grad_x, *others

    monkeypatch.setattr(norm, "batch_norm_backward", batch_norm_backward)
    net = chain(conv=conv(), norm=nn.BatchNorm2d(3), relu=nn.ReLU(), flat=nn.Flatten(), end=linear(12, 2))
    found = who(net, pictures(), layers="numpy")
    assert found.seen_in == "the backward of layer 'norm' (BatchNorm2d)"
    assert found.operation == "batch_norm_backward, in the backward of batch_norm"
    assert found.line.endswith("grad_x = grad_x * 0 / (args[4][0] * 0)")


# ---- the callback


class Lines(LightningModule):
    """A module that is no `Classifier`: its step divides by zero from the third on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = chain(flat=nn.Flatten(), drop=nn.Dropout(0.5), end=linear(64, 4), bad=self.bad)

    def bad(self, x: Tensor) -> Tensor:
        return x if self.global_step < 2 else x.abs().log() - (x - x).exp().log().reciprocal()

    def training_step(self, batch: Any) -> Tensor:
        loss: Tensor = self.net(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(model: LightningModule, callbacks: list[Callback], **options: Any) -> EverywhereError:
    """The error that ends the training of a model."""
    known: dict[str, Any] = {"max_steps": 5, "precision": "32-true", "logger": False} | options
    quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=callbacks, limit_val_batches=0, **quiet, **known)
    with pytest.raises(EverywhereError) as caught:
        trainer.fit(model, Digits())
    return caught.value


class Spoiled(Callback):
    """From a step on, something that is not finite."""

    def __init__(self, what: str, step: int = 2) -> None:
        self.what, self.step = what, step

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, index: int) -> None:
        if trainer.global_step == self.step:
            if self.what == "picture":
                batch[0][5, 0, 3, 4] = math.nan
            else:
                with torch.no_grad():
                    pl_module.net.conv2.weight[3, 0, 1, 1] = math.inf


def test_the_callback_names_who_began_in_any_module(tmp_path: Path) -> None:
    file = tmp_path / "step.pt"
    model = Lines()
    error = fit(model, [StopAtNonFinite(str(file))])
    assert error.head == (
        "step 2: expected a finite loss, got nan; first seen in the output of layer 'bad' (Run)"
        if "nan" in error.head
        else "step 2: expected a finite loss, got inf; first seen in the output of layer 'bad' (Run)"
    )
    assert "operation: reciprocal" in error.details
    assert "cause: 1 / 0" in error.details
    assert saved.read(file).step == 2


def test_the_step_that_runs_again_leaves_no_trace() -> None:
    model: Any = Classifier(image_size=8)
    model.net.add_module("norm", nn.BatchNorm1d(10))
    seen: list[Tensor] = []

    class Watch(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.global_step == 2:
                seen.extend(buffer.clone() for buffer in pl_module.buffers())
                seen.append(pl_module.train_loss.total.clone())

    fit(model, [Watch(), Spoiled("picture")])
    left = [*model.buffers(), model.train_loss.total]
    assert len(seen) > 3
    assert "log" not in model.__dict__
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(seen, left, strict=True))


def test_the_step_that_runs_again_draws_the_same_random_numbers() -> None:
    drawn: list[float] = []

    class Draws(Lines):
        def bad(self, x: Tensor) -> Tensor:
            drawn.append(float(torch.rand(())))
            return super().bad(x)

    fit(Draws(), [StopAtNonFinite()])
    assert drawn[-1] == drawn[-2] != drawn[-3]


def test_functions_computed_by_numpy_are_looked_into() -> None:
    error = fit(Classifier(image_size=8, functions="numpy", layers="torch"), [Spoiled("picture")])
    assert error.head == "step 2: expected a finite loss, got nan; first seen in the input"
    assert "picture: 5 of the batch's 32 (0 to 31)" in error.details


def test_a_compiled_network_runs_again_as_it_is_written() -> None:
    runs: list[int] = []
    before: list[int] = []

    def compiler(graph: Any, example: Any) -> Any:
        def run(*inputs: Any) -> Any:
            runs.append(1)
            return graph(*inputs)

        return run

    class Watch(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
            before.append(len(runs))

    model = Classifier(image_size=8, layers="torch")
    model.net.compile(backend=compiler)
    error = fit(model, [Watch(), Spoiled("picture")])
    assert error.head == "step 2: expected a finite loss, got nan; first seen in the input"
    assert len(runs) == before[-1] > before[0] > 0


def test_a_constant_of_the_step_is_told() -> None:
    found = who(chain(conv=conv(), bad=lambda x: x * torch.tensor(math.nan)), pictures())
    assert (found.seen_in, found.cause) == ("a constant of the step", "nan")


@BOTH
def test_a_gradient_that_is_not_finite_is_named_too(layers: Any) -> None:
    model = Classifier(image_size=8, layers=layers)
    last: Any = model.net.linear2
    last.register_forward_hook(
        lambda module, inputs, y: y * (1 + (y - y.detach()).square().sum(1, keepdim=True).sqrt())
    )
    error = fit(model, [])
    assert error.head == (
        "step 0: expected finite gradients, got NaN or infinity; first seen in the backward of layer 'linear2' (Linear)"
    )
    assert "operation: div, in the backward of sqrt" in error.details
    assert "picture: all 32 of the batch" in error.details


def test_a_step_with_manual_optimization_is_not_run_again() -> None:
    class Manual(Lines):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any) -> Tensor:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            loss = super().training_step(batch)
            self.manual_backward(loss)
            optimizer.step()
            return loss

    error = fit(Manual(), [StopAtNonFinite()])
    assert error.details == ()
    assert "step 2: expected a finite loss, got " in error.head


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_a_saved_step_gives_the_same_finding_again(
    precision: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classifier, "configure_callbacks", lambda self: [StopAtNonFinite(str(tmp_path / FILE))])
    error = fit(Classifier(image_size=8), [Spoiled("weight")], precision=precision)
    again = [line for line in error.details if line.startswith("again: cnn-lightning replay ")]
    assert len(again) == 1
    assert "first seen in the weights of layer 'conv2' (conv2.weight)" in error.head
    for layers in ([], ["--model.layers", "torch"]):
        assert main(["replay", str(tmp_path / FILE), *layers]) == 1
        found = capsys.readouterr().out
        assert found.startswith("step 2: expected a finite loss, got ")
        assert "conv2.weight" in found
    mended = saved.read(tmp_path / FILE)
    mended.state_dict["net.conv2.weight"][3, 0, 1, 1] = 0.0
    saved.write(tmp_path / FILE, mended)
    assert main(["replay", str(tmp_path / FILE)]) == 0
    assert "loss and gradients are finite" in capsys.readouterr().out


FIT = ["fit", "--trainer.max_epochs", "1", "--pictures", "false", "--trainer.enable_progress_bar", "false"]


def test_a_run_writes_the_step_into_its_folder_and_one_command_runs_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*FIT, "--model.lr", "1e30"]) == 2
    lines = capsys.readouterr().err.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("cnn-lightning: error: step 1: "))
    details = lines[first + 1 :]
    assert all(line.startswith("  ") for line in details)
    assert len(details) <= 7
    command = next(line for line in details if "again: " in line).partition("again: ")[2]
    assert command == "cnn-lightning replay runs/digits/version_0/nonfinite.pt"
    run = subprocess.run(
        [sys.executable, "-m", "cnn_lightning", *command.split()[1:]], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1, run.stderr
    assert run.stdout.splitlines()[0] == lines[first].removeprefix("cnn-lightning: error: ")
    assert run.stdout.splitlines()[1:] == [line for line in details if not line.startswith(("  again:", "  remedy:"))]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved step."""
    path = tmp_path_factory.mktemp("saved") / FILE
    model = Classifier(image_size=8)
    known = dict(model.hparams)
    step = saved.Saved(
        step=7,
        module="cnn_lightning.classifier.module.Classifier",
        batch=[torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)],
        state_dict=dict(model.state_dict()),
        hyper_parameters={name: value for name, value in known.items() if not name.startswith("_")},
        layers={},
        functions="torch",
        fast=True,
        memory_format="contiguous",
        precision="32-true",
        device="cpu",
        random_state=[torch.get_rng_state()],
        found="expected a finite loss, got nan; first seen in the input",
    )
    saved.write(path, step)
    return path


def change(source: Path, target: Path, **entries: Any) -> Path:
    """A copy of a saved step with other entries."""
    torch.save(torch.load(source, weights_only=True) | entries, target)
    return target


class Code:
    def __reduce__(self) -> Any:
        return Path.mkdir, (Path("it-ran"),)


def test_a_damaged_or_foreign_file_is_one_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged = tmp_path / "damaged.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    text = tmp_path / "text.pt"
    text.write_text("hello")
    code = tmp_path / "code.pt"
    torch.save({"nonfinite": saved.MARK, "batch": Code()}, code)
    weights = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1)}, weights)
    wrong = {
        damaged: "is damaged",
        text: "is no nonfinite.pt but",
        code: "holds code besides weights",
        weights: "which is another file",
        tmp_path: "is a folder",
        tmp_path / "none.pt": "found none at",
        change(file, tmp_path / "a.pt", step="1"): "expected step as it is saved",
        change(file, tmp_path / "b.pt", layers={"conv1": "os.system"}): "is no sound nonfinite.pt",
        change(file, tmp_path / "c.pt", batch=[1, 2]): "expected a step of Classifier",
        change(file, tmp_path / "d.pt", hyper_parameters={}): "expected a step of Classifier",
        change(file, tmp_path / "e.pt", hyper_parameters={"net": "simple_cnn", "layers": "os.system"}): "doesn't know",
        change(file, tmp_path / "f.pt", state_dict={}): "does not fit",
        change(file, tmp_path / "g.pt", random_state=[torch.zeros(1)]): "is no sound",
        change(file, tmp_path / "i.pt", random_state=[torch.zeros(1, dtype=torch.uint8)]): "does not run",
        change(file, tmp_path / "h.pt", batch=[torch.zeros(2, 3), torch.zeros(2)]): "does not run",
    }
    for path, words in wrong.items():
        assert main(["replay", str(path)]) == 2, path
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("cnn-lightning: error: file: ")
        assert words in line
    assert not (tmp_path / "it-ran").exists()
    assert main(["replay", str(file)]) == 0


def test_a_saved_step_of_another_module_is_refused_by_its_name(tmp_path: Path) -> None:
    from cnn_lightning.tools.replay.command import replay

    fit(Lines(), [StopAtNonFinite(str(tmp_path / FILE))])
    with pytest.raises(
        UserError, match=r"expected a step of Classifier in .*, got one of tests\.test_nonfinite\.Lines"
    ):
        replay(saved.read(tmp_path / FILE), tmp_path / FILE)


def test_a_full_disk_is_said_beside_the_finding(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.write_text("a file where a folder should be")
    error = fit(Lines(), [StopAtNonFinite(str(folder / FILE))])
    assert any("not written: " in line for line in error.details)
    assert "operation: reciprocal" in error.details
    shutil.rmtree(tmp_path, ignore_errors=True)


# ---- several processes


class SpoiledInOne(Callback):
    """A picture of one process that is no number, at one step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, index: int) -> None:
        if (trainer.global_step, trainer.global_rank) == (3, 1):
            batch[0][4, 0, 0, 0] = math.nan


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_have_one_finding_and_one_file(tmp_path: Path) -> None:
    flags = ["--data.batch_size", "130", "--trainer.callbacks+=tests.test_nonfinite.SpoiledInOne"]
    runs = ranks(2, [*FIT, *flags], tmp_path)
    for run in runs:
        assert run.wait() == 2, run.text
        assert noise(run.text) == []
    assert "step 3: expected a finite loss, got nan; first seen in the input\n" in runs[0].text
    assert "picture: 4 of the batch's 130 (0 to 129)" in runs[0].text
    assert "error" not in runs[1].text
    assert [path.name for path in tmp_path.rglob("*.pt")] == [FILE]
    assert main(["replay", str(tmp_path / "runs/digits/version_0" / FILE)]) == 1
