"""What in the inputs of an operator gave NaN or infinity, in a few words: ``0 / 0``, ``log of 0``, ``variance 0``."""

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from cnn_lightning.nonfinite.recorder import Event, Kind, Where, at, first_bad, index_of

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float64, torch.float32: torch.float64}
SIGNS = {"div": "/", "true_divide": "/", "mul": "*", "add": "+", "sub": "-", "pow": "**"}
PRODUCTS = ("convolution", "conv", "mm", "addmm", "bmm", "baddbmm", "linear", "product", "einsum", "attention", "dot")
CONSTANTS = ("full", "masked_fill", "fill", "scalar_tensor", "where", "full_like", "new_full", "constant_pad_nd")
"""Operators that write a number they are given."""


def cause_of(event: Event, kind: Kind) -> str:
    """What in the inputs of an operator that itself made NaN or infinity did it."""
    if not event.unchanged:
        return "its inputs were overwritten in place later"
    case = Case(event, kind)
    for rule in (_constant, _normalised, _softmax, _elementwise, _of_no_numbers, _counted, _overflow, _product):
        found = rule(case)
        if found is not None:
            return found
    return _in_general(case)


class Case:
    """An operator with its arguments by the names of its formula, and the place of its first bad result."""

    def __init__(self, event: Event, kind: Kind) -> None:
        self.event, self.kind, self.name = event, kind, event.name
        index, self.place = event.places[kind]
        self.output = event.outputs[index]
        self.index = index
        self.values = _values(event)
        tensors = [value for value in self.values.values() if isinstance(value, Tensor)]
        self.floating = [tensor for tensor in tensors if tensor.is_floating_point()]

    def first(self, *names: str) -> Tensor | None:
        """The first argument of these names that is a tensor."""
        return next((self.values[name] for name in names if isinstance(self.values.get(name), Tensor)), None)

    def operands(self) -> list[float]:
        """The numbers that an elementwise operator reads for the bad result; empty for another operator."""
        found = []
        for value in self.values.values():
            if isinstance(value, Tensor):
                number = at(value, self.place, self.output.shape)
                if number is None:
                    return []
                found.append(float(number))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found.append(float(value))
        return found


def _values(event: Event) -> dict[str, Any]:
    if not event.is_call:
        return dict(event.values)
    tensors = event.values["tensors"]
    if not event.formulas:
        return {str(index): tensor for index, tensor in enumerate(tensors)}
    op, options = event.formulas[0].op, event.formulas[0].options
    parameters = inspect.signature(op).parameters
    known = {name: each.default for name, each in parameters.items() if each.default is not inspect.Parameter.empty}
    return known | dict(zip(parameters, tensors, strict=False)) | options


# ---- rules, in the order in which they are tried


def writes_constant(event: Event) -> bool:
    """Whether an operator writes infinity or NaN because it is told so, as for a mask: no fault by itself."""
    return event.name in CONSTANTS and bool(_written(event.values))


def _written(values: Mapping[str, Any]) -> list[float]:
    return [value for value in values.values() if isinstance(value, float) and not math.isfinite(value)]


def _constant(case: Case) -> str | None:
    return f"the constant {_written(case.values)[0]}, as of a mask" if writes_constant(case.event) else None


def _normalised(case: Case) -> str | None:
    """A variance of 0 and no epsilon."""
    if "norm" not in case.name or "vector_norm" in case.name:
        return None
    x = case.first("x", "input")
    if x is None:
        return None
    if first_bad(x):
        return "inf - inf: its input has infinite numbers" if case.kind == "nan" and not case.event.node else None
    eps = case.values.get("eps")
    parts = _variance(case, x)
    sums = [float(torch.tensor(value + (eps or 0.0)).to(x.dtype)) for _, value in parts]
    bad = [part for part, sum_ in zip(parts, sums, strict=True) if not 0 < sum_ < math.inf]
    if not bad:
        return None
    where, value = bad[0]
    if not math.isfinite(value):
        largest = _largest(x)
        return f"the variance of {where} overflows: numbers up to {_number(largest)}"
    count = f" of one value ({tuple(x.shape)})" if x.numel() // max(1, len(parts)) == 1 else ""
    known = f" and eps {_number(eps)}" if eps is not None else ""
    if value < 0:
        return f"variance {_number(value)}{known} in {where}, below 0"
    return f"variance 0{count}{known} in {where}"


def _variance(case: Case, x: Tensor) -> list[tuple[str, float]]:
    """The variance of each part of the input that is normalised by its own: a channel, a row."""
    wide = x.detach().double()
    if "batch_norm" in case.name:
        given = case.first("var", "running_var")
        training = case.values.get("training", case.values.get("train", "no_training" not in case.name))
        evaluated = case.event.is_call and "backward" not in case.name
        if given is not None and (not training or evaluated):
            values = given.detach().double()
        else:
            values = wide.transpose(0, 1).flatten(1).var(1, correction=0)
        return [(f"channel {index}", float(value)) for index, value in enumerate(values)]
    if "layer_norm" in case.name or "rms" in case.name:
        shape = case.values.get("normalized_shape")
        axes = len(shape) if shape is not None else int(case.values.get("axes", 1))
        rows = wide.flatten(-axes)
        values = rows.square().mean(-1) if "rms" in case.name else rows.var(-1, correction=0)
        what = "row"
    else:
        groups = case.values.get("groups", case.values.get("group", x.shape[1] if x.dim() > 1 else 1))
        values = wide.reshape(x.shape[0], int(groups), -1).var(-1, correction=0)
        what = "picture and group"
    bad = (values == 0) | ~values.isfinite()
    if not bool(bad.any()):
        return []
    place = index_of(bad)
    return [(f"{what} {', '.join(map(str, place))}", float(values[place]))]


def _softmax(case: Case) -> str | None:
    """A row that is all -inf, or that has +inf."""
    scores = case.first("logits", "x", "self", "input")
    named = "softmax" in case.name or case.name.startswith("cross_entropy")
    if scores is None or not named or scores.dim() == 0:
        return None
    dim = 1 if "entropy" in case.name else int(case.values.get("dim", -1))
    dim = min(dim, scores.dim() - 1)
    rows = scores.detach().movedim(dim, -1)
    found = ((rows == -math.inf).all(-1), f"all {rows.shape[-1]} numbers of the row are -inf")
    other = ((rows == math.inf).any(-1), "inf - inf: the row has inf")
    for mask, text in (found, other):
        if bool(mask.any()):
            return f"{text} (row {', '.join(map(str, index_of(mask))) or '0'})"
    return None


def _elementwise(case: Case) -> str | None:
    numbers = case.operands()
    rule = _RULES.get(case.name)
    if rule is None or not numbers:
        return None
    try:
        text = rule(*numbers[: 1 if case.name in _UNARY else 2])
    except TypeError:  # of fewer numbers than the rule takes
        return None
    return text and text + _derivative(case.event, text)


def _derivative(event: Event, text: str) -> str:
    """The derivative that a step of torch's backward computes, where that is infinite."""
    function = _SLOPES.get(event.node.removesuffix("Backward0").removesuffix("Backward1"))
    return f"; {function}' is infinite at 0" if function and (" / 0" in text or "0 **" in text) else ""


_SLOPES = {"Sqrt": "sqrt", "Pow": "pow", "Log": "log", "Rsqrt": "rsqrt", "Log2": "log2", "Log10": "log10"}


def _divide(a: float, b: float) -> str | None:
    if b == 0 or (math.isinf(a) and math.isinf(b)):
        return f"{_number(a)} / {_number(b)}"
    return None


def _multiply(a: float, b: float) -> str | None:
    return f"{_number(a)} * {_number(b)}" if 0 in (a, b) and (math.isinf(a) or math.isinf(b)) else None


def _add(a: float, b: float) -> str | None:
    return f"{_number(a)} {'-' if b < 0 else '+'} {_number(abs(b))}" if math.isinf(a) and math.isinf(b) else None


def _subtract(a: float, b: float) -> str | None:
    return f"{_number(a)} - {_number(b)}" if math.isinf(a) and math.isinf(b) else None


def _power(a: float, b: float) -> str | None:
    return f"{_number(a)} ** {_number(b)}" if a <= 0 or math.isinf(a) else None


def _below(name: str, least: float, *, also_at: bool) -> Callable[[float], str | None]:
    def rule(x: float) -> str | None:
        if x < least or (also_at and x == least):
            return f"{name} of {_number(x)}"
        return None

    return rule


_UNARY = {
    "sqrt": _below("sqrt", 0, also_at=False),
    "rsqrt": _below("rsqrt (1 / sqrt)", 0, also_at=True),
    "reciprocal": lambda x: f"1 / {_number(x)}" if x == 0 else None,
    "log": _below("log", 0, also_at=True),
    "log2": _below("log2", 0, also_at=True),
    "log10": _below("log10", 0, also_at=True),
    "log1p": _below("log1p", -1, also_at=True),
    "lgamma": _below("lgamma", 0, also_at=True),
}
_RULES: dict[str, Callable[..., str | None]] = {
    **_UNARY,
    "div": _divide,
    "true_divide": _divide,
    "mul": _multiply,
    "add": _add,
    "sub": _subtract,
    "pow": _power,
    "xlogy": lambda x, y: f"log of {_number(y)}" if y <= 0 else None,
}


def _of_no_numbers(case: Case) -> str | None:
    """A mean of nothing; a variance of one number."""
    if case.name not in ("mean", "var", "std", "var_mean", "std_mean") or not case.floating:
        return None
    x = case.floating[0]
    count = x.numel() // max(1, case.output.numel())
    if count == 0:
        return f"0 / 0: the {case.name} of no numbers"
    if count == 1 and case.name != "mean":
        return "0 / 0: the variance of one number, divided by 1 - 1"
    return None


def _counted(case: Case) -> str | None:
    """A loss whose mean is over no target."""
    target = case.first("target")
    is_of_classes = case.name.startswith(("nll_loss", "cross_entropy"))
    if target is None or target.is_floating_point() or case.kind != "nan" or not is_of_classes:
        return None
    ignored = case.values.get("ignore_index", -100)
    counted = target[target != ignored]
    weight = case.first("weight")
    if counted.numel() == 0:
        return f"0 / 0: the mean over no target; all {target.numel()} are {ignored}, which is ignored"
    if weight is not None and float(weight[counted].sum()) == 0:
        return "0 / 0: the weights of the targets' classes sum to 0"
    return None


def _overflow(case: Case) -> str | None:
    """A result that is finite in the next wider format, or that is beyond that as well."""
    format_ = case.output.dtype
    numbers = case.operands()
    finite = all(map(math.isfinite, numbers)) if numbers else not any(map(first_bad, case.floating))
    if format_ not in WIDER or not finite:
        return None
    name, limit = str(format_).removeprefix("torch."), _number(torch.finfo(format_).max)
    wide = _in_wider(case, WIDER[format_])
    if wide is None or math.isnan(wide):
        return None
    made, largest = _made(case)
    if math.isinf(wide):
        return f"overflow in {name}: {made or 'the result'} is beyond {limit}{largest}" if case.kind == "inf" else None
    if abs(wide) > torch.finfo(format_).max:
        made = f"{made} = {_number(wide)}" if made else _number(wide)
        return f"overflow in {name}: {made} is beyond {limit}{largest}"
    exact = str(WIDER[format_]).removeprefix("torch.")
    return f"overflow in {name} on the way: in {exact} the result is {_number(wide)}{largest}"


def _made(case: Case) -> tuple[str, str]:
    """What overflows: an elementwise operator and its numbers; for another the largest number of each argument."""
    numbers, sign = case.operands(), SIGNS.get(case.name)
    if case.name in ("_to_copy", "copy"):
        return "", ""
    if sign and len(numbers) >= 2:
        return f"{_number(numbers[0])} {sign} {_number(numbers[1])}", ""
    if len(numbers) == 1:
        return f"{case.name} of {_number(numbers[0])}", ""
    named = [(name, value) for name, value in case.values.items() if any(value is each for each in case.floating)]
    return "", "".join(
        f"; {'input' if name == 'self' else name} up to {_number(_largest(value))}" for name, value in named[:3]
    )


def _in_wider(case: Case, format_: torch.dtype) -> float | None:
    """The result at the place, computed in a wider format; None if that fails."""

    def widened(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().to(format_)
        return format_ if value == case.output.dtype and isinstance(value, torch.dtype) else value

    values = {name: tree_map(widened, value) for name, value in case.event.values.items()}
    if case.event.is_call:
        given = json.loads(values["options"])
        values["options"] = json.dumps(given | {"dtypes": [str(format_).removeprefix("torch.")] * len(given["dtypes"])})
    args, kwargs = case.event.arguments(values)
    try:
        if case.name == "copy":
            return float(values["src"].expand(case.output.shape)[case.place])
        result = case.event.function(*args, **kwargs)
        many = [each for each in (result if isinstance(result, tuple | list) else [result]) if isinstance(each, Tensor)]
        return float(many[min(case.index, len(many) - 1)][case.place])
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None


def _product(case: Case) -> str | None:
    """A sum of products of infinite numbers."""
    if not any(first_bad(tensor) for tensor in case.floating):
        return None
    if case.kind == "nan" and any(name in case.name for name in (*PRODUCTS, "sum", "mean")):
        summed = "sum" in case.name or "mean" in case.name
        return "inf - inf in the sum" if summed else "an infinite number met 0, or inf - inf, in the sum of products"
    numbers = case.operands()
    return f"{case.name} of {', '.join(map(_number, numbers))}" if numbers else "an infinite number among its inputs"


def _in_general(case: Case) -> str:
    numbers = case.operands()
    if numbers:
        return f"{case.name} of {', '.join(map(_number, numbers))}"
    largest = [f"{_number(_largest(tensor))}" for tensor in case.floating]
    return f"its inputs are finite, up to {' and '.join(largest)}" if largest else "it has no numbers as inputs"


def _largest(tensor: Tensor) -> float:
    finite = tensor.detach()[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else math.nan


def _number(value: float) -> str:
    return f"{value + 0.0:.5g}"  # 0 in place of -0


# ---- pictures


def pictures_of(event: Event, kind: Kind, n: int) -> tuple[int, ...] | None:
    """The pictures that alone give a bad result; all for a result of all at once; None if it can't be told.

    Args:
        event: The operator.
        kind: Of the number.
        n: The pictures in the batch.
    """
    index, place = event.places[kind]
    output = event.outputs[index]
    backward_of_others = index > 0 and bool(event.node)
    if output.dim() and output.shape[0] == n and not backward_of_others and _is_by_picture(event, index, n, place):
        return _rows(output, kind) or (place[0],)  # ReLU in place, say, has written over the output
    if not event.unchanged:
        return None
    found = [_is_bad_alone(event, picture, n) for picture in range(n)]
    if None in found:
        return None
    alone = tuple(picture for picture, bad in enumerate(found) if bad)
    return alone or tuple(range(n))


def _rows(output: Tensor, kind: Kind) -> tuple[int, ...]:
    """The indices along the first axis where there is such a number."""
    mask = output.isnan() if kind == "nan" else output.isinf()
    return tuple(int(index) for index in mask.reshape(len(output), -1).any(1).nonzero().flatten())


def _is_by_picture(event: Event, index: int, n: int, place: Where) -> bool:
    """Whether the first axis of the output is that of the pictures: then one picture alone gives one row, also bad."""
    if not event.unchanged:
        return event.outputs[index].dim() > 1
    results = _alone(event, place[0], n)
    if results is None or index >= len(results) or results[index].shape[:1] != (1,):
        return False
    return not bool(results[index][(0, *place[1:])].isfinite())


def _is_bad_alone(event: Event, picture: int, n: int) -> bool | None:
    results = _alone(event, picture, n)
    return None if results is None else any(first_bad(result) for result in results)


def _alone(event: Event, picture: int, n: int) -> list[Tensor] | None:
    """The results of the operator for one picture; None if it does not run so, or no argument is of the batch."""
    of_batch = {id(tensor) for tensor in event.of_batch}
    cut = 0

    def only(value: Any) -> Any:
        nonlocal cut
        if not isinstance(value, Tensor):
            return value
        axis = next((axis for axis in range(min(2, value.dim())) if value.shape[axis] == n), None)
        if axis is None or id(value) not in of_batch:
            return value.detach().clone()
        cut += 1
        return value.detach().narrow(axis, picture, 1).clone()

    values = {name: 1 if name == "N" else tree_map(only, value) for name, value in event.values.items()}
    if not cut:
        return None
    args, kwargs = event.arguments(values)
    try:
        result = event.function(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None
    many: Sequence[Any] = result if isinstance(result, tuple | list) else (result,)
    return [each for each in many if isinstance(each, Tensor)]
