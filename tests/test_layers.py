"""Every rule that a layer keeps, for every row of the table of cases."""

import copy
import itertools
import pickle
from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cnn_lightning import batch_last, fast, layers
from tests.cases import Case, Sample, load

CASES = load()
SAMPLES = [
    pytest.param(case, sample, id=f"{case.name}-{index}") for case in CASES for index, sample in enumerate(case.samples)
]
FIRST = [pytest.param(case, case.samples[0], id=case.name) for case in CASES]
BAD = [pytest.param(case, bad, id=f"{case.name}-{index}") for case in CASES for index, bad in enumerate(case.bad)]
DIFFERENTIABLE = [
    pytest.param(case, sample, id=f"{case.name}-{index}")
    for case in CASES
    for index, sample in enumerate(case.samples)
    if sample.gradcheck
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

Run = tuple[list[Tensor], list[Tensor], list[Tensor]]


def build(case: Case, sample: Sample, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our layer and the native one with equal weights."""
    torch.manual_seed(0)
    native = case.native(**sample.options).train(sample.train)
    ours = case.layer(**sample.options).train(sample.train)
    ours.load_state_dict(native.state_dict())
    return ours.to(dtype), native.to(dtype)


def tensors(results: Any) -> list[Tensor]:
    return list(results) if isinstance(results, tuple) else [results]


def run(
    module: torch.nn.Module,
    inputs: tuple[Any, ...],
    call: Callable[..., Any] | None = None,
    layout: Callable[[Tensor], Tensor] = Tensor.contiguous,
) -> Run:
    """Outputs, gradients of floating inputs and parameters for a fixed upstream gradient, and buffers.

    ``layout`` arranges the memory of the upstream gradient.
    """
    torch.manual_seed(1)
    leaves = [
        value.detach().clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in inputs
    ]
    # An in-place layer may not write into a leaf: like torch, it gets a node of the graph.
    given = [value * 1 if isinstance(value, Tensor) and value.is_floating_point() else value for value in leaves]
    outputs = tensors((call or module)(*given))
    floats = [output for output in outputs if output.is_floating_point() and output.requires_grad]
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad] + list(module.parameters())
    generator = torch.Generator().manual_seed(2)
    upstream = [
        layout(torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)) for output in floats
    ]
    gradients = torch.autograd.grad(floats, wanted, upstream, allow_unused=True) if floats else ()
    filled = [torch.zeros(()) if gradient is None else gradient for gradient in gradients]
    return outputs, filled, list(module.buffers())


def assert_equal(ours: Run, native: Run, tolerance: float) -> None:
    for name, found, expected in zip(("output", "gradient", "buffer"), ours, native, strict=True):
        assert len(found) == len(expected)
        for index, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert a.dtype == b.dtype, f"{name} {index}: {a.dtype} for {b.dtype}"
            assert a.shape == b.shape, f"{name} {index}: {tuple(a.shape)} for {tuple(b.shape)}"
            scale = max(1.0, b.double().abs().nan_to_num(0, 0, 0).max().item()) if b.numel() else 1.0
            torch.testing.assert_close(
                a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True, msg=partial("{}: {}".format, name)
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize(("case", "sample"), SAMPLES)
def test_values_and_gradients_equal_the_native_layer(case: Case, sample: Sample, dtype: torch.dtype) -> None:
    ours, native = build(case, sample, dtype)
    inputs = sample.inputs(dtype)
    assert_equal(run(ours, inputs), run(native, inputs), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_half_precision(case: Case, sample: Sample, dtype: torch.dtype) -> None:
    ours, native = build(case, sample, dtype)
    inputs = sample.inputs(dtype)
    try:
        expected = run(native, inputs)
    except NotImplementedError:  # no kernel on the CPU: then in float64, rounded
        exact = run(build(case, sample, torch.float64)[1], tuple(value.double() for value in inputs))
        outputs, gradients, buffers = ([tensor.to(dtype) for tensor in part] for part in exact)
        expected = outputs, gradients, buffers
    assert_equal(run(ours, inputs), expected, TOLERANCE[dtype])


@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_autocast_gives_the_native_dtypes(case: Case, sample: Sample) -> None:
    ours, native = build(case, sample)
    inputs = sample.inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = run(ours, inputs), run(native, inputs)
    assert_equal(found, expected, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize(("case", "sample"), DIFFERENTIABLE)
def test_gradcheck(case: Case, sample: Sample) -> None:
    ours, _ = build(case, sample, torch.float64)
    inputs = [
        value.requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in sample.inputs(torch.float64)
    ]
    names = [name for name, _ in ours.named_parameters()]

    def function(*values: Any) -> Any:
        torch.manual_seed(1)
        given = [value * 1 if isinstance(value, Tensor) and value.is_floating_point() else value for value in values]
        weights = dict(zip(names, given[len(inputs) :], strict=True))
        outputs = torch.func.functional_call(ours, weights, tuple(given[: len(inputs)]))
        return tuple(output for output in tensors(outputs) if output.is_floating_point())

    parameters = [parameter.detach().clone().requires_grad_() for parameter in ours.parameters()]
    assert torch.autograd.gradcheck(function, (*inputs, *parameters), rtol=1e-6, fast_mode=True)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x


def _strided(x: Tensor) -> Tensor:
    wide = torch.zeros(*x.shape[:-1], x.shape[-1] * 2, dtype=x.dtype) if x.dim() else x
    view = wide[..., ::2] if x.dim() else x
    return view.copy_(x) if x.dim() else x


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@pytest.mark.parametrize("layout", [_transposed, _strided, _channels_last])
@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_any_strides(case: Case, sample: Sample, layout: Callable[[Tensor], Tensor]) -> None:
    ours, native = build(case, sample, torch.float64)
    inputs = sample.inputs(torch.float64)
    if "dropout" in case.name.lower() and layout is not _channels_last:
        pytest.skip("torch draws its mask in memory order, which these strides change")
    odd = tuple(layout(value) if isinstance(value, Tensor) and value.is_floating_point() else value for value in inputs)
    assert_equal(run(ours, odd), run(native, odd), TOLERANCE[torch.float64])


@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_memory_format_is_kept_as_torch_keeps_it(case: Case, sample: Sample) -> None:
    ours, native = build(case, sample)
    for layout in (Tensor.contiguous, _channels_last):
        inputs = [layout(value) if isinstance(value, Tensor) else value for value in sample.inputs()]
        found, expected = tensors(ours(*inputs)), tensors(native(*inputs))
        for a, b in zip(found, expected, strict=True):
            if b.dim() == 4 and b.is_contiguous():
                assert a.is_contiguous()


IMAGES = [
    pytest.param(case, sample, id=f"{case.name}-{index}")
    for case in CASES
    for index, sample in enumerate(case.samples)
    if any(isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point() for value in sample.inputs())
]


def _batch_last(x: Tensor) -> Tensor:
    return batch_last(x) if x.dim() == 4 else x


def _in_batch_last(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_batch_last(value) if isinstance(value, Tensor) else value for value in inputs)


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "formula"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize(("case", "sample"), IMAGES)
def test_batch_last_gives_the_values_of_contiguous_memory(
    case: Case, sample: Sample, dtype: torch.dtype, is_fast: bool
) -> None:
    """Whatever the memory format of the upstream gradient."""
    ours, native = build(case, sample, dtype)
    inputs = _in_batch_last(sample.inputs(dtype))
    # A dropout draws its mask in memory order, as torch's does.
    expected = run(native, inputs) if "Dropout" in case.name else run(copy.deepcopy(ours), sample.inputs(dtype))
    with fast(is_fast):
        for layout in (Tensor.contiguous, _channels_last, _batch_last):
            assert_equal(run(copy.deepcopy(ours), inputs, layout=layout), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "formula"])
@pytest.mark.parametrize(("case", "sample"), IMAGES)
def test_batch_last_is_kept_where_torch_keeps_channels_last(case: Case, sample: Sample, is_fast: bool) -> None:
    ours, native = build(case, sample)
    inputs = sample.inputs()
    plain, kept = (
        tensors(native(*(layout(value) if isinstance(value, Tensor) else value for value in inputs)))
        for layout in (Tensor.contiguous, _channels_last)
    )
    with fast(is_fast):
        found = tensors(ours(*_in_batch_last(inputs)))
    for a, b, c in zip(found, plain, kept, strict=True):
        if b.dim() == 4 and b.is_contiguous() and not c.is_contiguous():
            assert _channels_last(c) is c
            assert batch_last(a) is a, f"strides {a.stride()} of shape {tuple(a.shape)}"


@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_inputs_are_not_written(case: Case, sample: Sample) -> None:
    ours, _ = build(case, sample)
    inputs = sample.inputs()
    before = [copy.deepcopy(value) for value in inputs]
    run(ours, inputs)
    for a, b in zip(inputs, before, strict=True):
        if isinstance(a, Tensor):
            assert torch.equal(a, b)


Change = tuple[str, int]
"""What to change in place between forward and backward: an input or an output by its index, or a parameter."""


def changes(module: torch.nn.Module, inputs: tuple[Any, ...], outputs: int) -> list[Change]:
    found = [("input", index) for index, value in enumerate(inputs) if isinstance(value, Tensor)]
    found += [("output", index) for index in range(outputs)]
    weights = [name for name, _ in module.named_parameters()] + [name for name, _ in module.named_buffers()]
    return found + [(name, 0) for name in weights if not name.startswith(("running_", "num_batches"))]


def backward_after(module: torch.nn.Module, inputs: tuple[Any, ...], frozen: Set[str], change: Change) -> Any:
    """The gradients after ``change``, or "refused". ``frozen`` names parameters, and inputs by their index."""
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    leaves = [
        value.clone().requires_grad_(value.is_floating_point() and str(index) not in frozen)
        if isinstance(value, Tensor)
        else value
        for index, value in enumerate(inputs)
    ]
    given = [value * 1 if isinstance(value, Tensor) else value for value in leaves]  # no leaf, which may not change
    outputs = tensors(module(*given))
    kind, index = change
    found = {"input": given, "output": outputs}
    target = (
        found[kind][index] if kind in found else (dict(module.named_parameters()) | dict(module.named_buffers()))[kind]
    )
    with torch.no_grad():
        target.mul_(0 if target.dtype == torch.int64 else 2)
    wanted = [value for value in [*leaves, *module.parameters()] if isinstance(value, Tensor) and value.requires_grad]
    floats = [output for output in outputs if output.requires_grad]
    try:
        return torch.autograd.grad([y.sum() for y in floats], wanted, allow_unused=True) if floats and wanted else ()
    except RuntimeError as error:
        # The second message is about a part of a tensor that torch's layer split.
        if not any(words in str(error) for words in ("modified by an inplace operation", "been modified inplace")):
            raise
        return "refused"


def assert_refused_alike(
    ours: torch.nn.Module,
    native: torch.nn.Module,
    inputs: tuple[Any, ...],
    choices: Sequence[Set[str]] = (frozenset(),),
) -> list[bool]:
    """For each choice of what is frozen and every change: refused alike, or equal gradients. True is refused."""
    outputs = len(tensors(copy.deepcopy(native)(*copy.deepcopy(inputs))))
    seen = []
    for frozen in choices:
        for change in changes(native, inputs, outputs):
            found, expected = (backward_after(copy.deepcopy(each), inputs, frozen, change) for each in (ours, native))
            what = f"{change} with {frozen or 'nothing'} frozen"
            seen.append(isinstance(expected, str))
            assert isinstance(found, str) == isinstance(expected, str), f"{what}: {found} for {expected}"
            for a, b in zip(found, expected, strict=True) if not isinstance(expected, str) else ():
                assert (a is None) == (b is None), what
                if b is not None:
                    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=partial("{}: {}".format, what))
    return seen


@pytest.mark.parametrize(("case", "sample"), SAMPLES)
def test_a_change_in_place_before_the_backward_is_taken_as_torch_takes_it(case: Case, sample: Sample) -> None:
    """Input, outputs and weights in turn: a layer keeps for its backward what torch's layer keeps."""
    assert_refused_alike(*build(case, sample, torch.float64), sample.inputs(torch.float64))


def _kind(case: Case, sample: Sample) -> str:
    """The properties by which torch may decide which tensors it keeps."""
    options = sample.options
    dtypes = tuple(value.dtype for value in sample.inputs() if isinstance(value, Tensor))
    return str((case.name, dtypes, options.get("padding_mode"), options.get("label_smoothing", 0) > 0, len(options)))


KINDS = {
    _kind(case, sample): pytest.param(case, sample, id=f"{case.name}-{index}")
    for case in CASES
    for index, sample in enumerate(case.samples)
    if not sample.options.get("inplace")  # which needs the gradient of its input, or is nothing
}


@pytest.mark.parametrize(("case", "sample"), KINDS.values())
def test_a_change_in_place_where_some_need_no_gradient(case: Case, sample: Sample) -> None:
    ours, native = build(case, sample, torch.float64)
    inputs = sample.inputs(torch.float64)
    names = [str(i) for i, value in enumerate(inputs) if isinstance(value, Tensor) and value.is_floating_point()]
    names += [name for name, _ in native.named_parameters()]
    counts = range(1, len(names)) if len(names) < 6 else (1, len(names) - 1)  # of many not every subset
    choices = [set(some) for count in counts for some in itertools.combinations(names, count)]
    assert_refused_alike(ours, native, inputs, choices)


@pytest.mark.parametrize(("layer", "axes"), [(layers.BatchNorm1d, 1), (layers.BatchNorm2d, 2), (layers.BatchNorm3d, 3)])
@pytest.mark.parametrize("train", [True, False])
def test_running_statistics_may_change_before_the_backward(
    layer: type[torch.nn.Module], axes: int, train: bool
) -> None:
    """Torch refuses that by hand, though not by a forward in training, which gives its evaluation a wrong gradient.

    Ours keeps what it normalised by, and its gradient is right after either.
    """
    torch.manual_seed(0)
    module: Any = layer(3).double().train(train)
    x = torch.randn(4, 3, *[2] * axes, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    y = module(x)
    with torch.no_grad():
        module.running_var.mul_(2)
        module.train()(x + 1)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_one_module_used_twice(case: Case, sample: Sample) -> None:
    ours, native = build(case, sample, torch.float64)
    inputs = sample.inputs(torch.float64)

    def twice(module: torch.nn.Module) -> Callable[..., Any]:
        def call(x: Tensor, *rest: Any) -> Any:
            return tensors(module(x, *rest))[0] + tensors(module(x * 0.5, *rest))[0]

        return call

    assert_equal(run(ours, inputs, twice(ours)), run(native, inputs, twice(native)), TOLERANCE[torch.float64])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_copies_and_pickles(case: Case, sample: Sample, clone: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
    ours, _ = build(case, sample)
    twin = clone(ours)
    assert type(twin) is case.layer
    inputs = sample.inputs()
    assert_equal(run(ours, inputs), run(twin, inputs), 0.0)


@pytest.mark.parametrize(("case", "sample"), SAMPLES)
def test_state_and_representation_are_the_native_ones(case: Case, sample: Sample) -> None:
    ours, native = build(case, sample)
    assert isinstance(ours, case.native)
    assert list(ours.state_dict()) == list(native.state_dict())
    assert ours.extra_repr() == native.extra_repr()


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_activation_checkpointing(case: Case, sample: Sample, use_reentrant: bool) -> None:
    ours, _ = build(case, sample, torch.float64)
    inputs = sample.inputs(torch.float64)

    def losses(call: Callable[..., Any]) -> list[Tensor]:
        torch.manual_seed(1)
        given = [
            value.clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in inputs
        ]
        ours.zero_grad()
        output = tensors(call(*given))[0]
        output.sum().backward()
        return [
            leaf.grad for leaf in [*given, *ours.parameters()] if isinstance(leaf, Tensor) and leaf.grad is not None
        ]

    twin = copy.deepcopy(ours.state_dict())
    plain = losses(ours)
    ours.load_state_dict(twin)
    for a, b in zip(losses(lambda *v: checkpoint(ours, *v, use_reentrant=use_reentrant)), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_inference_mode(case: Case, sample: Sample) -> None:
    ours, native = build(case, sample)
    with torch.inference_mode():
        torch.manual_seed(1)
        found = tensors(ours(*sample.inputs()))
        torch.manual_seed(1)
        expected = tensors(native(*sample.inputs()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_empty_batch(case: Case, sample: Sample) -> None:
    ours, native = build(case, sample, torch.float64)
    inputs = tuple(
        value[:0] if (isinstance(value, Tensor) and value.dim() and index == 0) or _is_batched(value) else value
        for index, value in enumerate(sample.inputs(torch.float64))
    )
    try:
        expected = run(native, inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        with pytest.raises(type(error)):
            run(ours, inputs)
    else:
        assert_equal(run(ours, inputs), expected, 0.0)


def _is_batched(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_double_backward_says_so(case: Case, sample: Sample) -> None:
    if case.is_view:
        pytest.skip("a view of torch's own, with every derivative")
    ours, _ = build(case, sample, torch.float64)
    x, *rest = sample.inputs(torch.float64)
    x.requires_grad_()
    output = tensors(ours(x * 1, *rest))[0]
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(output.sum(), x, create_graph=True)


@pytest.mark.filterwarnings("default:The .grad attribute")  # the compiler's own look at an input that is no leaf
@pytest.mark.parametrize(("case", "sample"), FIRST)
def test_compiles_to_the_same_numpy(case: Case, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    if dict(sample.options).get("inplace"):
        pytest.skip("tested with the in-place layers")
    ours, _ = build(case, sample)
    inputs = sample.inputs()
    eager = run(copy.deepcopy(ours), inputs)
    torch._dynamo.reset()
    keys = list(ours.state_dict())
    ours.compile(fullgraph=True, backend="aot_eager")
    assert_equal(run(ours, inputs), eager, 1e-6)
    assert list(ours.state_dict()) == keys


@pytest.mark.parametrize(("case", "bad"), BAD)
def test_refuses_what_torch_refuses(case: Case, bad: Any) -> None:
    def use(layer: type[torch.nn.Module]) -> None:
        layer(**bad.options)(*bad.inputs())

    with pytest.raises(Exception) as native:
        use(case.native)
    with pytest.raises(native.type) as ours:
        use(case.layer)
    assert ours.type is native.type
    assert str(ours.value)


NO_TENSORS = [None, [1.0], 1.0, "x", np.ones((2, 3, 8, 8), np.float32)]


@pytest.mark.parametrize("value", NO_TENSORS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(("case", "sample"), [row for row in FIRST if row.id != "Identity"])
def test_refuses_what_is_no_tensor(case: Case, sample: Sample, value: Any) -> None:
    ours, native = build(case, sample)
    _, *rest = sample.inputs()
    with pytest.raises(Exception) as expected:
        native(value, *rest)
    with pytest.raises(expected.type) as found:
        ours(value, *rest)
    assert "\n" not in str(found.value)
