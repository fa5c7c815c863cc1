"""Formulas on an array that answers NumPy's dispatch as CuPy does: nothing goes to the host, and results are equal."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cnn_lightning.layers.bridge import layout
from tests.calls import OPERATIONS, Operation, name_of, recorded, results
from tests.duck import Duck, NotOnTheDevice


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """Layers raise no warning for infinity and NaN."""
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("op", OPERATIONS, ids=name_of)
def test_stays_on_its_device_and_gives_the_same(op: Operation) -> None:
    calls = recorded()
    assert calls.get(name_of(op)), f"no layer of the table calls {name_of(op)}: give it arguments in `direct`"
    for arrays, options in calls[name_of(op)]:
        if "check_target" in inspect.signature(op).parameters:
            options = options | {"check_target": False}  # as layers do for tensors on a device
        options = {name: value for name, value in options.items() if name != "needs"}  # the bridge's business
        expected = results(op(*arrays, **options))
        given = [Duck(array.copy("K")) if array is not None else None for array in arrays]
        found = results(layout.as_torch(op.__name__, op(*given, **options), given))  # the bridge's part, too
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
            if device is not None:
                np.testing.assert_array_equal(device.array, array)


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
