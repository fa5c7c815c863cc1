"""The cases that PyTorch tests its own modules and functions with, on our layers and the native ones side by side."""

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor, nn

from cnn_lightning import swap

pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest, which torch does not bring along")

LAYERS = {native.__name__: native for native in swap.LAYERS if native.__module__.startswith("torch.nn")}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
MOST = 80
"""Of thousands of samples of one function, so many are tried, spread evenly."""


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
    found = outcome(make, swap.LAYERS[native], args, kwargs or {})
    if isinstance(expected, Exception):
        assert isinstance(found, type(expected)), f"{found!r} in place of {expected!r}"
        assert "\n" not in str(found), found
        return
    if isinstance(found, Exception):
        raise found
    for name, ours, theirs in zip(("output", "gradient", "buffer"), found, expected, strict=True):
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
                a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True, msg=lambda m, n=label: f"{n}: {m}"
            )


# ---- modules: torch's table gives constructor and forward arguments


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["f64", "f32"])
@pytest.mark.parametrize("name", LAYERS)
def test_inputs_of_modules(suite: SimpleNamespace, name: str, dtype: torch.dtype) -> None:
    info = suite.modules.get(LAYERS[name])
    if info is None:
        pytest.skip("not in torch's table of modules")
    for training in (True, False):
        for given in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training):
            compare(*_module(LAYERS[name], given, dtype, training))


@pytest.mark.parametrize("name", LAYERS)
def test_wrong_inputs_of_modules(suite: SimpleNamespace, name: str) -> None:
    info = suite.modules.get(LAYERS[name])
    if info is None or info.module_error_inputs_func is None:
        pytest.skip("no wrong inputs in torch's table of modules")
    for error in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
    ):
        given = error.module_error_input
        compare(*_module(LAYERS[name], given, torch.float32, True))


def _module(native: type[nn.Module], given: Any, dtype: torch.dtype, training: bool) -> tuple[Any, ...]:
    built, called = given.constructor_input, given.forward_input

    def make(kind: type[nn.Module]) -> nn.Module:
        return kind(*fresh(built.args), **fresh(built.kwargs)).to(dtype).train(training)

    return native, make, called.args if called else (), called.kwargs if called else {}


# ---- functions: their arguments are a layer's options, its parameters and its input


def function(
    *names: str, parameters: tuple[str, ...] = (), sizes: Callable[..., Mapping[str, Any]] | None = None
) -> Callable[[type[nn.Module], Any], tuple[Any, ...]]:
    """How a sample becomes a module: the names of its arguments after the input, and which of them are parameters.

    ``sizes`` gives from input and parameters what the constructor needs besides.
    """

    def case(native: type[nn.Module], sample: Any) -> tuple[Any, ...]:
        options = dict(zip(names, sample.args, strict=False)) | sample.kwargs
        given = {name: options.pop(name, None) for name in parameters}
        training = options.pop("training", True)
        if sizes is not None:
            options |= sizes(sample.input, **given)

        def make(kind: type[nn.Module]) -> nn.Module:
            module = kind(**fresh(options)).train(training)
            for name, value in given.items():
                if name in ("weight", "bias"):
                    setattr(module, name, None if value is None else nn.Parameter(fresh(value).detach()))
                elif value is not None:
                    setattr(module, name, fresh(value).detach())
            return module

        return native, make, (sample.input,), {}

    return case


def loss(*names: str) -> Callable[[type[nn.Module], Any], tuple[Any, ...]]:
    def case(native: type[nn.Module], sample: Any) -> tuple[Any, ...]:
        options = dict(zip(("target", *names), sample.args, strict=False)) | sample.kwargs
        target = options.pop("target")
        return native, lambda kind: kind(**fresh(options)), (sample.input, target), {}

    return case


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1, transposed: bool = False) -> Any:
    first, second, *kernel = weight.shape
    channels = (first, second * groups) if transposed else (second * groups, first)
    return {
        "in_channels": channels[0],
        "out_channels": channels[1],
        "kernel_size": tuple(kernel),
        "bias": bias is not None,
    }


def convolution(transposed: bool = False) -> Callable[[type[nn.Module], Any], tuple[Any, ...]]:
    names = ["weight", "bias", "stride", "padding", "dilation", "groups"]
    if transposed:
        names[4:] = ["output_padding", "groups", "dilation"]

    def case(native: type[nn.Module], sample: Any) -> tuple[Any, ...]:
        groups = (dict(zip(names, sample.args, strict=False)) | sample.kwargs).get("groups", 1)
        sizes = functools.partial(_convolution, groups=groups, transposed=transposed)
        return function(*names, parameters=("weight", "bias"), sizes=sizes)(native, sample)

    return case


def _batch_norm(x: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any) -> Any:
    return {"num_features": x.shape[1] if x.dim() > 1 else 1, "track_running_stats": running_mean is not None}


BATCH_NORM = function(
    *("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    parameters=("running_mean", "running_var", "weight", "bias"),
    sizes=_batch_norm,
)
MAX_POOL = function("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
AVG_POOL = function("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
OLD = ("size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
FUNCTIONS: dict[str, tuple[str, Callable[[type[nn.Module], Any], tuple[Any, ...]]]] = {
    "Conv1d": ("nn.functional.conv1d", convolution()),
    "Conv2d": ("nn.functional.conv2d", convolution()),
    "ConvTranspose2d": ("nn.functional.conv_transpose2d", convolution(transposed=True)),
    "Linear": (
        "nn.functional.linear",
        function(
            *("weight", "bias"),
            parameters=("weight", "bias"),
            sizes=lambda x, weight, bias: {"in_features": weight.shape[-1], "out_features": len(weight)},
        ),
    ),
    "MaxPool1d": ("nn.functional.max_pool1d", MAX_POOL),
    "MaxPool2d": ("nn.functional.max_pool2d", MAX_POOL),
    "AvgPool1d": ("nn.functional.avg_pool1d", AVG_POOL),
    "AvgPool2d": ("nn.functional.avg_pool2d", AVG_POOL),
    "AdaptiveAvgPool1d": ("nn.functional.adaptive_avg_pool1d", function("output_size")),
    "AdaptiveAvgPool2d": ("nn.functional.adaptive_avg_pool2d", function("output_size")),
    "AdaptiveMaxPool2d": ("nn.functional.adaptive_max_pool2d", function("output_size", "return_indices")),
    "BatchNorm1d": ("nn.functional.batch_norm", BATCH_NORM),
    "BatchNorm2d": ("nn.functional.batch_norm", BATCH_NORM),
    "LayerNorm": (
        "nn.functional.layer_norm",
        function("normalized_shape", "weight", "bias", "eps", parameters=("weight", "bias")),
    ),
    "GroupNorm": (
        "nn.functional.group_norm",
        function(
            *("num_groups", "weight", "bias", "eps"),
            parameters=("weight", "bias"),
            sizes=lambda x, weight, bias: {"num_channels": x.shape[1] if x.dim() > 1 else 1},
        ),
    ),
    "ReLU": ("nn.functional.relu", function("inplace")),
    "ReLU6": ("nn.functional.relu6", function("inplace")),
    "LeakyReLU": ("nn.functional.leaky_relu", function("negative_slope", "inplace")),
    "PReLU": (
        "nn.functional.prelu",
        function(
            *("weight",),
            parameters=("weight",),
            sizes=lambda x, weight: {"num_parameters": max(1, weight.numel())},
        ),
    ),
    "ELU": ("nn.functional.elu", function("alpha", "inplace")),
    "GELU": ("nn.functional.gelu", function("approximate")),
    "SiLU": ("nn.functional.silu", function("inplace")),
    "Mish": ("nn.functional.mish", function("inplace")),
    "Softplus": ("nn.functional.softplus", function("beta", "threshold")),
    "Hardswish": ("nn.functional.hardswish", function("inplace")),
    "Hardsigmoid": ("nn.functional.hardsigmoid", function("inplace")),
    "Sigmoid": ("sigmoid", function()),
    "Tanh": ("tanh", function()),
    "Softmax": ("softmax", function("dim")),
    "LogSoftmax": ("log_softmax", function("dim")),
    "Dropout": ("nn.functional.dropout", function("p", "training", "inplace")),
    "Dropout2d": ("nn.functional.dropout2d", function("p", "training", "inplace")),
    "CrossEntropyLoss": ("nn.functional.cross_entropy", loss("weight", *OLD)),
    "NLLLoss": ("nn.functional.nll_loss", loss("weight", *OLD[:-1])),
    "MSELoss": ("nn.functional.mse_loss", loss("size_average", "reduce", "reduction")),
}


def _fits(name: str, sample: Any) -> bool:
    """Whether the sample is one that a module of this name can be made of: functions take a little more."""
    if name == "Linear":
        return bool(sample.args[0].dim() == 2)
    if name.startswith("BatchNorm"):
        return sample.input.dim() in ((2, 3) if name == "BatchNorm1d" else (4,))
    return True


@pytest.mark.parametrize("name", FUNCTIONS)
def test_samples_of_functions(suite: SimpleNamespace, name: str) -> None:
    operation, case = FUNCTIONS[name]
    samples = list(suite.functions[operation, ""].sample_inputs("cpu", torch.float64, requires_grad=True))
    samples = [sample for sample in samples if _fits(name, sample)]
    assert samples
    for sample in samples[:: -(-len(samples) // MOST)]:
        compare(*case(LAYERS[name], sample))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_samples_of_functions(suite: SimpleNamespace, name: str) -> None:
    operation, case = FUNCTIONS[name]
    info = suite.functions[operation, ""]
    if info.error_inputs_func is None:
        pytest.skip("no wrong samples in torch's table of functions")
    for error in info.error_inputs("cpu"):
        if _fits(name, error.sample_input):
            compare(*case(LAYERS[name], error.sample_input))


def test_window_of_more_pixels_than_a_short_integer_counts() -> None:
    x = torch.randn(1, 1, 190, 190, dtype=torch.float64, requires_grad=True)
    compare(nn.MaxPool2d, lambda kind: kind(190, return_indices=True), (x,))
