"""Every operation on an array that is not NumPy's: the same numbers, and never a trip to the host.

The arguments are those that the layers give to the operations, over the whole table of cases, and what is written down
here for operations that no layer calls. An operation without arguments fails its test.
"""

import importlib
import inspect
import pkgutil
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cnn_lightning import ops
from cnn_lightning.layers import bridge
from cnn_lightning.ops import _blocks, conv
from tests.cases import load
from tests.duck import Duck, NotOnTheDevice
from tests.test_layers import build, run

Operation = Callable[..., Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def operations() -> list[Operation]:
    """The public functions of the public modules of `cnn_lightning.ops`."""
    modules = [
        importlib.import_module(f"{ops.__name__}.{info.name}")
        for info in pkgutil.iter_modules(ops.__path__)
        if not info.name.startswith("_")
    ]
    return [
        function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and function.__module__ == module.__name__
    ]


def name_of(op: Operation) -> str:
    return f"{op.__module__.rpartition('.')[2]}.{op.__name__}"


OPERATIONS = operations()


def direct() -> dict[str, list[Call]]:
    """Arguments of operations that no layer of the table calls."""
    random = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return random.standard_normal(shape)

    x, target = array(2, 3, 6, 6), random.integers(0, 3, (4,))
    probabilities, logits = array(4, 3), array(4, 3)
    grey = array(3, 1, 10, 10)
    parameters = (array(2, 1, 3, 3), array(2), array(3, 2, 3, 3), None)
    fused = importlib.import_module("cnn_lightning.ops.fused")
    y, *kept = fused.conv_relu_pool(grey, *parameters, paddings=(1, 1))
    chain = (np.ones_like(y), grey, *parameters, *kept)
    return {
        "conv.bias_gradient": [((x,), {})],
        "activation.elu_backward_from_output": [((x, x), {"alpha": 0.5})],
        "loss.cross_entropy_backward_target": [((np.array(1.0), logits, probabilities, array(3)), {})],
        "norm.batch_statistics": [((x,), {})],
        "norm.batch_norm_backward_part": [((x, 2 * x, array(3), *array(4, 3) ** 2), {"count": 100})],
        "loss.nll_loss": [((logits, target, array(3)), {})],
        "fused.conv_relu_pool": [
            ((grey, *parameters), {"paddings": (1, 1)}),
            ((grey, *parameters), {"paddings": (1, 1), "keep": False}),
        ],
        "fused.conv_relu_pool_backward": [
            (chain, {"paddings": (1, 1), "needs": (True,) * 5}),
            (chain, {"paddings": (1, 1), "needs": (False, False, False, False, True)}),
        ],
    }


@pytest.fixture(scope="module")
def calls() -> dict[str, list[Call]]:
    """What every operation was called with while every layer of the table ran, forward and backward."""
    found: dict[str, list[Call]] = defaultdict(list, direct())
    original = bridge._run

    def recording(op: Any, tensors: Any, dtypes: Any, mixed: bool, options: dict[str, Any], *rest: Any) -> Any:
        arrays = tuple(None if value is None else bridge._array(value, value.device).copy("K") for value in tensors)
        found[name_of(op)].append((arrays, options))
        return original(op, tensors, dtypes, mixed, options, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bridge, "_run", recording)
        for case in load():
            for sample in case.samples:
                for dtype in (torch.float64, torch.float32):
                    run(build(case, sample, dtype)[0], sample.inputs(dtype))
    return found


def results(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("op", OPERATIONS, ids=name_of)
def test_stays_on_its_device_and_gives_the_same(op: Operation, calls: dict[str, list[Call]]) -> None:
    assert calls.get(name_of(op)), f"no layer of the table calls {name_of(op)}: give it arguments in `direct`"
    for arrays, options in calls[name_of(op)]:
        if "check_target" in inspect.signature(op).parameters:
            options = options | {"check_target": False}  # as layers do for tensors on a device
        expected = results(op(*arrays, **options))
        given = [Duck(array.copy("K")) if array is not None else None for array in arrays]
        found = results(op(*given, **options))
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None)
            if b is None:
                continue
            assert isinstance(a, Duck), f"{type(a).__name__} came back"
            assert a.array.dtype == b.dtype
            single = np.float32 in (a.array.dtype, *(array.dtype for array in arrays if array is not None))
            # Whole batches are added up in another order than blocks.
            np.testing.assert_allclose(a.array, b, rtol=2e-5 if single else 1e-11, atol=1e-5 if single else 1e-12)
        for device, array in zip(given, arrays, strict=True):
            if array is not None:
                np.testing.assert_array_equal(device.array, array)


def test_a_batch_stays_whole_on_a_device_unless_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    x, parts = np.zeros((600, 3)), _blocks.blocks(600, 2**20)
    assert len(parts) > 100
    assert _blocks.run(lambda part: part, parts, like=Duck(x)) == [slice(0, 256), slice(256, 512), slice(512, 600)]
    assert _blocks.run(lambda part: part, parts[:2], like=Duck(x)) == [slice(parts[0].start, parts[1].stop)]
    monkeypatch.setattr(_blocks, "DEVICE_BYTES", 1)
    images, weight = (np.random.default_rng(0).standard_normal(shape) for shape in [(5, 3, 6, 6), (4, 3, 3, 3)])
    y = conv.conv2d(Duck(images), Duck(weight))
    np.testing.assert_allclose(y.array, conv.conv2d(images, weight), rtol=1e-12)  # type: ignore[attr-defined]


def _host(x: Any) -> Any:
    return np.asarray(x)


def _number(x: Any) -> Any:
    return float(x.sum())


def _choice(x: Any) -> Any:
    return x if np.isnan(x).any() else -x


def _mask(x: Any) -> Any:
    return x[x > 0]


def _host_constant(x: Any) -> Any:
    return x * np.arange(x.shape[-1])


def _unknown_option(x: Any) -> Any:
    return x.max(initial=0)


def _unknown_function(x: Any) -> Any:
    return np.interp(x, [0.0, 1.0], [0.0, 1.0])


def _where(x: Any) -> Any:
    return np.multiply(x, 2, out=x.copy(), where=x > 0)


def _reduce(x: Any) -> Any:
    return np.add.reduce(x)


def _values(x: Any) -> Any:
    return [value * 2 for value in x[0]]


@pytest.mark.parametrize(
    "op",
    [_host, _number, _choice, _mask, _host_constant, _unknown_option, _unknown_function, _where, _reduce, _values],
    ids=lambda op: op.__name__,
)
def test_the_trip_is_noticed(op: Operation) -> None:
    x = np.linspace(-1, 1, 6).reshape(2, 3)
    op(x)
    with pytest.raises(NotOnTheDevice):
        op(Duck(x))
