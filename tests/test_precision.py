"""Precisions: torch's dtypes from every layer, and curves that stay as near to torch's as the README says."""

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from cnn_lightning.data import Digits
from tests.cases import Case, Sample, load
from tests.test_classifier import Losses, classifier, train
from tests.test_layers import build, tensors

SAMPLES = [
    pytest.param(case, sample, id=f"{case.name}-{index}", marks=[pytest.mark.slow] if index else [])
    for case in load()
    for index, sample in enumerate(case.samples)
]
MIXED = {"conv1": "numpy", "linear*": "numpy", "*": "torch"}
LAYERS = {"numpy": "numpy", "mixed": MIXED}

DISTANCES = {
    "64-true": 1e-9,
    "32-true": 1e-4,
    "16-mixed": 0.05,
    "bf16-mixed": 0.05,
    "16-true": 0.1,
    "bf16-true": 0.1,
}
"""The largest difference of a training loss from torch's at the same precision; the README's table names them."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*lr_scheduler.step.*",
    "ignore:.*AMP with fp16 is not supported on CPU.*",
    "ignore:Mismatch dtype between input and weight",  # of RMSNorm
)


# ---- dtypes


Dtypes = list[torch.dtype | None] | type[Exception]


def dtypes(module: nn.Module, inputs: tuple[Any, ...], autocast: torch.dtype | None) -> Dtypes:
    """Those of all outputs and gradients, or what kind of error there was."""
    torch.manual_seed(1)
    leaves = [
        value.detach().clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in inputs
    ]
    given = [value * 1 if isinstance(value, Tensor) and value.is_floating_point() else value for value in leaves]
    try:
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            outputs = tensors(module(*given))
        wanted = [leaf for leaf in [*leaves, *module.parameters()] if isinstance(leaf, Tensor) and leaf.requires_grad]
        floats = [output for output in outputs if output.requires_grad]
        upstream = [torch.ones_like(output) for output in floats]
        found = torch.autograd.grad(floats, wanted, upstream, allow_unused=True) if floats else ()
    except (RuntimeError, NotImplementedError) as error:
        return NotImplementedError if isinstance(error, NotImplementedError) else RuntimeError
    return [None if each is None else each.dtype for each in [*outputs, *found]]


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("autocast", [None, *HALVES], ids=["plain", "bf16 autocast", "f16 autocast"])
@pytest.mark.parametrize(("case", "sample"), SAMPLES)
def test_dtypes_of_outputs_and_gradients_are_torchs(case: Case, sample: Sample, autocast: torch.dtype | None) -> None:
    """For parameters of each dtype; under autocast also for inputs of each, as the layer before may give them.

    Without autocast, where torch has no kernel for a half precision on the CPU, its dtypes are those of float64, lower.
    """
    compared = 0
    for own in (torch.float32, torch.float64, *HALVES):
        ours, native = build(case, sample, own)
        for given in {own} if autocast is None else (torch.float32, torch.float64, *HALVES):
            inputs = sample.inputs(given)
            expected = dtypes(copy.deepcopy(native), inputs, autocast)
            if expected is NotImplementedError and autocast is None and own in HALVES:
                exact = dtypes(build(case, sample, torch.float64)[1], sample.inputs(torch.float64), None)
                expected = exact if isinstance(exact, type) else [own if d is torch.float64 else d for d in exact]
            if isinstance(expected, type):  # torch has no such kernel for mixed dtypes
                continue
            compared += 1
            assert dtypes(copy.deepcopy(ours), inputs, autocast) == expected, f"parameters {own}, input {given}"
    assert compared >= 4


def test_a_wrong_dtype_is_seen() -> None:
    class Widening(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.double()

    inputs = (torch.ones(2, dtype=torch.bfloat16),)
    assert dtypes(Widening(), inputs, None) != dtypes(nn.Identity(), inputs, None)


# ---- training


class Gradients(Callback):
    """The dtypes of all parameters and their gradients after each backward."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, torch.dtype, torch.dtype | None]] = set()

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        for name, parameter in pl_module.net.named_parameters():
            self.seen.add((name, parameter.dtype, None if parameter.grad is None else parameter.grad.dtype))


def curve(layers: Any, precision: Any, steps: int, *, scaled: bool = False) -> tuple[list[float], Gradients]:
    """The losses of a training run on the digits; ``scaled`` is float16 autocast with a scaler, as GPUs have it."""
    losses, gradients = Losses(), Gradients()
    amp: dict[str, Any] = {"precision": precision}
    if scaled:
        amp = {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))]}
    trainer = Trainer(
        max_steps=steps,
        callbacks=[losses, gradients],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **amp,
    )
    trainer.fit(classifier(layers), Digits())
    return losses.values, gradients


def distances(precision: str, steps: int) -> dict[str, float]:
    """Each implementation's largest difference from torch; dtypes must be equal, and the loss must fall."""
    expected, native = curve("torch", precision, steps, scaled=precision == "16-mixed")
    assert len(expected) == steps
    assert expected[-1] < 0.8 * expected[0]
    found = {}
    for name, layers in LAYERS.items():
        losses, gradients = curve(layers, precision, steps, scaled=precision == "16-mixed")
        assert gradients.seen == native.seen
        found[name] = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    return found


@pytest.mark.parametrize("precision", DISTANCES)
def test_curves_stay_within_the_stated_distance(precision: str) -> None:
    found = distances(precision, 30)
    assert max(found.values()) < DISTANCES[precision], found


@pytest.mark.slow
def test_the_table_of_the_readme() -> None:
    """Run with ``-s`` to read it."""
    print("\nprecision    numpy    mixed    (largest difference of a training loss from torch's, 200 steps)")
    for precision, most in DISTANCES.items():
        found = distances(precision, 200)
        print(f"{precision:10} {found['numpy']:8.1e} {found['mixed']:8.1e}")
        assert max(found.values()) < most


def test_a_network_of_another_precision_is_not_within_the_distance() -> None:
    """The distance distinguishes the precisions."""
    exact = train(classifier("numpy"), 20, "64-true")
    assert max(abs(a - b) for a, b in zip(train(classifier("torch"), 20, "32-true"), exact, strict=True)) > 1e-9
    coarse = train(classifier("numpy"), 20, "bf16-true")
    assert max(abs(a - b) for a, b in zip(coarse, exact, strict=True)) > 1e-4


def test_on_the_cpu_lightning_takes_bfloat16_for_16_mixed_whatever_runs_the_layers() -> None:
    told = []
    for layers in ("torch", "numpy", MIXED):
        with pytest.warns(UserWarning, match="AMP with fp16 is not supported on CPU") as found:
            _, gradients = curve(layers, "16-mixed", 2)
        told.append([str(warning.message) for warning in found if "AMP" in str(warning.message)])
        assert {dtype for _, *both in gradients.seen for dtype in both} == {torch.float32}
    assert told[0] == told[1] == told[2]
