"""The cases that PyTorch tests its own modules and functions with, on our layers and the native ones side by side."""

import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from tests.cases import Case, load

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest, which torch does not bring along")

CASES = {case.native: case for case in load()}
MODULES = [pytest.param(case, id=case.name) for case in CASES.values() if case.native.__module__.startswith("torch.nn")]
FLAT = (nn.BatchNorm3d, nn.InstanceNorm3d)
"""Layers of functions that torch's table tries with fewer axes only."""
FUNCTIONS = [
    pytest.param(case, id=case.name)
    for case in CASES.values()
    if case.entry.functions and not issubclass(case.native, FLAT)
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
MOST = 80
"""The number of samples tried of a function, at equal distances in their list; there may be thousands."""


@pytest.fixture(scope="module")
def suite() -> SimpleNamespace:
    """torch's tables. Importing them changes settings of this process, which are put back."""
    frozen, profile = torch.backends.flags_frozen(), hypothesis.settings.default
    modules = importlib.import_module("torch.testing._internal.common_modules")
    methods = importlib.import_module("torch.testing._internal.common_methods_invocations")
    setattr(torch.backends, "__allow_nonbracketed_mutation_flag", not frozen)
    hypothesis.settings.register_profile("before", profile)
    hypothesis.settings.load_profile("before")
    return SimpleNamespace(
        modules={info.module_cls: info for info in modules.module_db},
        functions={(info.name, info.variant_test_name): info for info in methods.op_db},
    )


# ---- one case, run natively and by ours

Make = Callable[[type[nn.Module]], nn.Module]
Outcome = Exception | tuple[list[Tensor], list[Tensor | None], list[Tensor]]


def fresh(value: Any) -> Any:
    """A copy with the same strides; tensors that required a gradient do again."""
    if isinstance(value, Tensor):
        if any(stride == 0 for stride in value.stride()) or value.layout != torch.strided:
            copy = value.detach().clone()
        else:
            copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value.detach())
        return copy.requires_grad_(value.requires_grad)
    if isinstance(value, list | tuple):
        return type(value)(map(fresh, value))
    return {key: fresh(item) for key, item in value.items()} if isinstance(value, dict) else value


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in tensors(item)] if isinstance(value, list | tuple) else []


def outcome(make: Make, kind: type[nn.Module], args: Any, kwargs: Any) -> Outcome:
    """Outputs, gradients of inputs and parameters, and buffers; or the exception."""
    torch.manual_seed(0)
    args, kwargs = fresh(args), fresh(kwargs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = make(kind)
            outputs = tensors(module(*args, **kwargs))
    except Exception as error:
        return error
    given = [*tensors(args), *tensors(list(kwargs.values())), *module.parameters()]
    leaves = [leaf for leaf in given if leaf.requires_grad]
    floats = [output for output in outputs if output.requires_grad]
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in floats]
    gradients = torch.autograd.grad(floats, leaves, upstream, allow_unused=True) if floats and leaves else ()
    return outputs, list(gradients), list(module.buffers())


def compare(native: type[nn.Module], make: Make, args: Any, kwargs: Any = None) -> None:
    expected = outcome(make, native, args, kwargs or {})
    found = outcome(make, CASES[native].layer, args, kwargs or {})
    if isinstance(expected, Exception):
        assert isinstance(found, type(expected)), f"{found!r} in place of {expected!r}"
        assert "\n" not in str(found), found
        return
    if isinstance(found, Exception):
        raise found
    for name, index in zip(("output", "gradient", "buffer"), range(3), strict=True):
        ours, theirs = found[index], expected[index]
        assert len(ours) == len(theirs)
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            label = f"{name} {index}"
            assert (a is None) == (b is None), label
            if a is None or b is None:
                continue
            assert (a.dtype, a.shape, a.requires_grad) == (b.dtype, b.shape, b.requires_grad), label
            if b.dim() == 4:
                assert a.is_contiguous() == b.is_contiguous(), f"{label}: {a.stride()} in place of {b.stride()}"
            tolerance = TOLERANCE.get(b.dtype, 0.0)
            scale = max(1.0, b.detach().double().abs().nan_to_num(0, 0, 0).max().item()) if b.numel() else 1.0
            torch.testing.assert_close(
                a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True, msg=partial("{}: {}".format, label)
            )


# ---- modules: torch's table gives constructor and forward arguments


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["f64", "f32"])
@pytest.mark.parametrize("case", MODULES)
def test_inputs_of_modules(suite: SimpleNamespace, case: Case, dtype: torch.dtype) -> None:
    info = suite.modules.get(case.native)
    if info is None:
        pytest.skip("not in torch's table of modules")
    for training in (True, False):
        for given in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training):
            compare(*_module(case.native, given, dtype, training))


@pytest.mark.parametrize("case", MODULES)
def test_wrong_inputs_of_modules(suite: SimpleNamespace, case: Case) -> None:
    info = suite.modules.get(case.native)
    if info is None or info.module_error_inputs_func is None:
        pytest.skip("no wrong inputs in torch's table of modules")
    for error in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    ):
        given = error.module_error_input
        compare(*_module(case.native, given, torch.float32, True))


def _module(native: type[nn.Module], given: Any, dtype: torch.dtype, training: bool) -> tuple[Any, ...]:
    built, called = given.constructor_input, given.forward_input

    def make(kind: type[nn.Module]) -> nn.Module:
        return kind(*fresh(built.args), **fresh(built.kwargs)).to(dtype).train(training)

    return native, make, called.args if called else (), called.kwargs if called else {}


# ---- functions: their arguments are a layer's options, its parameters and its input


def _info(suite: SimpleNamespace, case: Case) -> Any:
    """The function in torch's table."""
    name = case.entry.functions[0]
    info = suite.functions.get((f"nn.functional.{name}", "")) or suite.functions.get((name, ""))
    if info is None:
        pytest.skip("not in torch's table of functions")
    return info


def _names(case: Case) -> Sequence[str]:
    """Of the function's arguments after the input."""
    if case.arguments.names is not None:
        return case.arguments.names
    return [parameter.name for parameter in inspect.signature(case.native).parameters.values()]


def _arguments(case: Case, sample: Any) -> dict[str, Any]:
    return dict(zip(_names(case), sample.args, strict=False)) | sample.kwargs


def _fits(case: Case, sample: Any) -> bool:
    return case.arguments.fits(sample.input, _arguments(case, sample))


def _layer(case: Case, sample: Any) -> tuple[Any, ...]:
    """The arguments of `compare` for a sample of the function."""
    arguments, options = case.arguments, _arguments(case, sample)
    given = {name: options.pop(name, None) for name in arguments.parameters}
    options |= arguments.sizes(sample.input, options | given)
    inputs = [options.pop(name) for name in arguments.inputs]
    training = options.pop("training", True)

    def make(kind: type[nn.Module]) -> nn.Module:
        module = kind(**fresh(options)).train(training)
        for name, value in given.items():
            if name in ("weight", "bias"):
                setattr(module, name, None if value is None else nn.Parameter(fresh(value).detach()))
            elif value is not None:
                setattr(module, name, fresh(value).detach())
        return module

    return case.native, make, (sample.input, *inputs), {}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_samples_of_functions(suite: SimpleNamespace, case: Case) -> None:
    samples = list(_info(suite, case).sample_inputs("cpu", torch.float64, requires_grad=True))
    samples = [sample for sample in samples if _fits(case, sample)]
    assert samples
    for sample in samples[:: -(-len(samples) // MOST)]:
        compare(*_layer(case, sample))


@pytest.mark.parametrize("case", FUNCTIONS)
def test_wrong_samples_of_functions(suite: SimpleNamespace, case: Case) -> None:
    info = _info(suite, case)
    if info.error_inputs_func is None:
        pytest.skip("no wrong samples in torch's table of functions")
    for error in info.error_inputs("cpu"):
        if _fits(case, error.sample_input):
            compare(*_layer(case, error.sample_input))


def test_window_of_more_pixels_than_a_short_integer_counts() -> None:
    x = torch.randn(1, 1, 190, 190, dtype=torch.float64, requires_grad=True)
    compare(nn.MaxPool2d, lambda kind: kind(190, return_indices=True), (x,))
