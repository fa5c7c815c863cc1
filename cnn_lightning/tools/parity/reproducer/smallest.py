"""The smallest program that still shows a fault: less of every axis, default options, numbers that are easy to write.

The search changes one thing at a time and keeps a change where the fault stays. It first tries small sizes and random
numbers for everything at once: most faults of a whole operator show with these, too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from cnn_lightning.tools.parity.layerwise.runner import float_tensors
from cnn_lightning.tools.parity.reproducer import script
from cnn_lightning.tools.parity.reproducer.script import LITERALS, Case, Layer, Mode, Numbers, relaid

Shows = Callable[[Case], bool]
"""Whether a case shows the fault; False for every case once the time is over."""

_SMALL = (1, 2, 3, 4, 8, 16)
_DIGITS = (1, 2, 3, 5)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def smallest(case: Case, shows: Shows) -> Case:
    """A smaller case that shows a fault, as ``case`` does."""
    case = next((each for each in _small(case) if shows(each)), case)
    before = None
    while case is not before:
        before = case
        for number in range(len(_axes(case))):
            case = _shortest(case, number, shows)
        for simpler in _simplifications(case):
            case = next((each for each in simpler(case) if shows(each)), case)
    return case


def _small(case: Case) -> Iterator[Case]:
    """The case with at most a few of every axis, with random numbers and with its own."""
    for size in _SMALL:
        small: Case | None = case
        for number in range(len(_axes(case))):
            axis = _axes(small)[number] if small is not None else None
            if axis is not None and axis.length > size:
                small = axis.keep(0, size)
        if small is not None:
            yield _random(small)
            yield small


def _random(case: Case) -> Case:
    """The case with the numbers of a new layer, and random numbers elsewhere."""
    inputs = {
        name: next(_written(value), value) if isinstance(value, Numbers) else value
        for name, value in case.inputs.items()
    }
    upstream: dict[int, Numbers] = {index: replace(value, way="random") for index, value in case.upstream.items()}
    return replace(case, state={}, inputs=inputs, upstream=upstream)


# ---- sizes


@dataclass(frozen=True)
class _Axis:
    """The length of an axis, and the case with a window of it (first index, length); None where it can't run."""

    length: int
    keep: Callable[[int, int], Case | None]


def _shortest(case: Case, number: int, shows: Shows) -> Case:
    """The case with as little as possible of an axis: as much as possible is cut off, at either end."""
    axis = _axes(case)[number]
    step = axis.length - 1
    while step > 0:
        windows = (axis.keep(start, axis.length - step) for start in (0, step))
        smaller = next((each for each in windows if each is not None and shows(each)), None)
        if smaller is None:
            step //= 2
        else:
            case, axis = smaller, _axes(smaller)[number]
            step = min(step, axis.length - 1)
    return case


def _axes(case: Case) -> list[_Axis]:
    """All axes that can be cut, always in the same order: those of the inputs alone, and those of the layer."""
    first = next((value.values for value in case.inputs.values() if isinstance(value, Numbers)), None)
    if first is None:
        return []
    own: list[_Axis] = []
    taken = {1}  # of a part of a network, the channels are those of its first layer
    if isinstance(case.part, Layer):
        own, taken = _of_layer(case, case.part, first.dim())
    return [_plain(case, axis, first.shape[axis]) for axis in range(first.dim()) if axis not in taken] + own


def _plain(case: Case, axis: int, length: int) -> _Axis:
    """An axis of the inputs for which the layer has no numbers: the batch, height, width."""

    def keep(start: int, count: int) -> Case | None:
        window = range(start, start + count)
        inputs = {
            name: _taken(value, axis, window)
            if isinstance(value, Numbers) and value.values.dim() > axis and value.values.shape[axis] == length
            else value
            for name, value in case.inputs.items()
        }
        return _fitted(replace(case, inputs=inputs), {axis: start / length})

    return _Axis(length, keep)


def _taken(value: Numbers, axis: int, indices: Sequence[int]) -> Numbers:
    """Some indices of an axis, in memory in the same order of axes."""
    return replace(value, values=relaid(value.values.index_select(axis, torch.tensor(indices)), value.values))


def _fitted(case: Case, starts: Mapping[int, float]) -> Case | None:
    """The case with upstream gradients of the shape of its outputs; None where it does not run.

    ``starts`` has, for an axis of the output, the fraction of it that was cut off at its start.
    """
    if not case.backward:
        return case
    try:
        with script.undisturbed():
            mode = Mode() if case.mode.is_program else case.mode  # to compile takes long
            outputs = float_tensors(script.run(replace(case, place=("outputs", 0), mode=mode)).outputs)
    except Exception:  # a size that the layer refuses
        return None
    return replace(
        case, upstream={index: _cropped(value, outputs[index], starts) for index, value in case.upstream.items()}
    )


def _cropped(value: Numbers, y: Tensor, starts: Mapping[int, float]) -> Numbers:
    g = value.values
    if g.shape == y.shape:
        return value
    if g.dim() != y.dim() or any(new > old for new, old in zip(y.shape, g.shape, strict=True)):
        return Numbers(torch.zeros(y.shape, dtype=g.dtype), "random")
    for axis, (new, old) in enumerate(zip(y.shape, g.shape, strict=True)):
        start = min(int(starts.get(axis, 0.0) * old), old - new)
        g = g.narrow(axis, start, new)
    return replace(value, values=relaid(g, value.values))


# ---- sizes that a layer has numbers for


def _of_layer(case: Case, layer: Layer, dims: int) -> tuple[list[_Axis], set[int]]:
    """The axes of the layer's own numbers, and the axes of its input that they belong to."""
    options = layer.options
    if issubclass(layer.kind, _CONVOLUTIONS):
        return _of_convolution(case, layer, dims)
    if issubclass(layer.kind, nn.Linear):
        last = dims - 1
        ins = _counted(case, layer, {"in_features": 1}, {"weight": 1}, x=last)
        outs = _counted(case, layer, {"out_features": 1}, {"weight": 0, "bias": 0}, y=last)
        return [ins, outs], {last}
    if issubclass(layer.kind, nn.GroupNorm):
        groups, both = options["num_groups"], {"weight": 0, "bias": 0}
        size = options["num_channels"] // groups
        every = _counted(case, layer, {"num_groups": 1, "num_channels": size}, both, x=1, y=1, size=size)
        each = _counted(case, layer, {"num_channels": groups}, both, x=1, y=1, groups=groups)
        return [every, each], {1}
    for count in ("num_features", "num_parameters"):
        if count in options:
            return [_counted(case, layer, {count: 1}, dict.fromkeys(case.state, 0), x=1, y=1)], {1}
    if "normalized_shape" in options:
        ahead = dims - len(options["normalized_shape"])
        every_axis = range(ahead, dims)
        return [_normalised(case, layer, axis - ahead, axis) for axis in every_axis], set(every_axis)
    return [], set()


def _of_convolution(case: Case, layer: Layer, dims: int) -> tuple[list[_Axis], set[int]]:
    options = layer.options
    kernel = options["kernel_size"]
    groups, channel = options.get("groups", 1), dims - len(kernel) - 1
    ins, outs = options["in_channels"] // groups, options["out_channels"] // groups
    transposed = "Transpose" in layer.kind.__name__
    whole_groups = {"groups": 1, "in_channels": ins, "out_channels": outs}
    axes = [
        _counted(case, layer, whole_groups, {"weight": 0, "bias": 0}, x=channel, y=channel, size=ins),
        _counted(case, layer, {"in_channels": groups}, {"weight": 1 - transposed}, x=channel, groups=groups),
        _counted(case, layer, {"out_channels": groups}, {"weight": +transposed, "bias": 0}, y=channel, groups=groups),
    ]
    return axes + [_tap(case, layer, axis) for axis in range(len(kernel))], {channel}


def _counted(
    case: Case,
    layer: Layer,
    counts: Mapping[str, int],
    state: Mapping[str, int],
    *,
    x: int | None = None,
    y: int | None = None,
    groups: int = 1,
    size: int = 1,
) -> _Axis:
    """An axis that options of the layer count, as channels.

    Args:
        case: The case.
        layer: Its layer.
        counts: The value of each such option for an axis of length 1; the first counts the axis.
        state: For each parameter and buffer, its axis that is cut.
        x: The axis of the input; None if it is not cut.
        y: That of the output.
        groups: A window is taken in each of so many equal pieces of the axis.
        size: The axis is cut in pieces of so many numbers of the input.
    """
    option, unit = next(iter(counts.items()))
    length = layer.options.get(option, 1) // unit

    def indices(total: int, start: int, count: int) -> list[int]:
        """Of an axis of ``total`` numbers: a window in each group, or in the only one."""
        pieces = groups if total == groups * length else 1
        per = total // (pieces * length)
        window = range(start * per, (start + count) * per)
        return [piece * length * per + i for piece in range(pieces) for i in window]

    def cut(value: Numbers, axis: int, start: int, count: int) -> Numbers:
        if not value.values.dim():
            return value
        return _taken(value, axis, indices(value.values.shape[axis], start, count))

    def keep(start: int, count: int) -> Case | None:
        options = {**layer.options, **{name: count * one for name, one in counts.items()}}
        inputs = {
            name: cut(value, x, start, count) if x is not None and isinstance(value, Numbers) else value
            for name, value in case.inputs.items()
        }
        kept = {
            name: cut(value, state[name], start, count) if name in state else value
            for name, value in case.state.items()
        }
        smaller = replace(case, part=replace(layer, options=options), inputs=inputs, state=kept)
        return _fitted(smaller, {} if y is None else {y: start / length})

    return _Axis(length, keep)


def _normalised(case: Case, layer: Layer, number: int, axis: int) -> _Axis:
    """An axis that a layer norm normalises."""
    shape = tuple(layer.options["normalized_shape"])
    plain = _plain(case, axis, shape[number])

    def keep(start: int, count: int) -> Case | None:
        window = range(start, start + count)
        shorter = (*shape[:number], count, *shape[number + 1 :])
        part = replace(layer, options={**layer.options, "normalized_shape": shorter})
        state = {name: _taken(value, number, window) for name, value in case.state.items()}
        inputs = {n: _taken(v, axis, window) if isinstance(v, Numbers) else v for n, v in case.inputs.items()}
        return _fitted(replace(case, part=part, state=state, inputs=inputs), {axis: start / shape[number]})

    return _Axis(plain.length, keep)


def _tap(case: Case, layer: Layer, axis: int) -> _Axis:
    """An axis of the kernel of a convolution."""
    kernel = tuple(layer.options["kernel_size"])

    def keep(start: int, count: int) -> Case | None:
        shorter = (*kernel[:axis], count, *kernel[axis + 1 :])
        part = replace(layer, options={**layer.options, "kernel_size": shorter})
        window = range(start, start + count)
        state = {name: _taken(v, 2 + axis, window) if name == "weight" else v for name, v in case.state.items()}
        return _fitted(replace(case, part=part, state=state), {})

    return _Axis(kernel[axis], keep)


# ---- what is easier to read


def _simplifications(case: Case) -> list[Callable[[Case], Iterator[Case]]]:
    """Each gives simpler cases, the simplest first."""
    found: list[Callable[[Case], Iterator[Case]]] = []
    if isinstance(case.part, Layer):
        found += [partial(_by_default, option) for option in case.part.options]
    found += [_as_made, *(partial(_state, name) for name in case.state)]
    found += [partial(_input, name) for name, value in case.inputs.items() if isinstance(value, Numbers)]
    if case.backward:
        found += [partial(_without_upstream, index) for index in case.upstream]
        found += [partial(_upstream, index) for index in case.upstream]
    return found


def _by_default(option: str, case: Case) -> Iterator[Case]:
    if isinstance(case.part, Layer) and option in case.part.optional:
        options = {name: value for name, value in case.part.options.items() if name != option}
        simpler = _fitted(replace(case, part=replace(case.part, options=options)), {})
        if simpler is not None:
            yield simpler


def _as_made(case: Case) -> Iterator[Case]:
    if case.state:
        yield replace(case, state={})


def _state(name: str, case: Case) -> Iterator[Case]:
    if name in case.state:
        yield replace(case, state={key: value for key, value in case.state.items() if key != name})
        for value in _easier(case.state[name], _rounded):
            yield replace(case, state=case.state | {name: value})


def _input(name: str, case: Case) -> Iterator[Case]:
    for value in _easier(case.inputs[name], _written):
        yield replace(case, inputs=case.inputs | {name: value})


def _without_upstream(index: int, case: Case) -> Iterator[Case]:
    if len(case.upstream) > 1:
        yield replace(case, upstream={key: value for key, value in case.upstream.items() if key != index})


def _upstream(index: int, case: Case) -> Iterator[Case]:
    if index in case.upstream:
        for value in _easier(case.upstream[index], _written_gradient):
            yield replace(case, upstream=case.upstream | {index: value})


def _easier(value: Numbers, forms: Callable[[Numbers], Iterator[Numbers]]) -> Iterator[Numbers]:
    """The forms that are easier than the present one: contiguous, then with its strides."""
    contiguous = replace(value, values=value.values.contiguous())
    for layout in (contiguous, value) if contiguous.values.stride() != value.values.stride() else (value,):
        for form in forms(layout):
            if _is_same(form, value):
                return
            yield form


def _is_same(a: Numbers, b: Numbers) -> bool:
    written = a.way == b.way and a.values.stride() == b.values.stride()
    return written and (a.way != "literal" or torch.equal(a.values, b.values))


def _written(value: Numbers) -> Iterator[Numbers]:
    yield replace(value, way="random" if value.values.is_floating_point() else "zeros")
    yield from _rounded(value)


def _written_gradient(value: Numbers) -> Iterator[Numbers]:
    yield replace(value, way="ones")
    yield from _written(value)


def _rounded(value: Numbers) -> Iterator[Numbers]:
    """The numbers themselves with few digits, and all of them."""
    if value.values.numel() <= LITERALS:
        for digits in _DIGITS if value.values.is_floating_point() and value.way == "given" else ():
            yield Numbers(_with_digits(value.values, digits), "literal")
        yield replace(value, way="literal")


def _with_digits(x: Tensor, digits: int) -> Tensor:
    flat = [float(f"{number:.{digits}g}") for number in x.reshape(-1).tolist()]
    return relaid(torch.tensor(flat, dtype=x.dtype).reshape(x.shape), x)
