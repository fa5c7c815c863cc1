"""What a search found: where the first number that is not finite came from, as a few short lines."""

from dataclasses import dataclass

from cnn_lightning.nonfinite.causes import cause_of, pictures_of, writes_constant
from cnn_lightning.nonfinite.lines import line_of
from cnn_lightning.nonfinite.recorder import Event, Kind, Leaf, Source, first_bad


@dataclass(frozen=True)
class Finding:
    """Where the first number that is not finite came from.

    Attributes:
        what: The loss, or the gradient, that was not finite: ``a finite loss, got nan``.
        seen_in: The layer or tensor, as messages name it.
        layer: The layer's name; empty outside of all layers.
        operation: The operator's or formula's name; empty where a tensor was bad before the step.
        backward: Whether that ran in the backward pass.
        cause: What in its inputs did it.
        line: The line of the formula; empty if there is none.
        picture: Which pictures of the batch; empty if that can't be told.
        infinity: Where an infinite input of the operation came from, if a mask has it on purpose; empty otherwise.
        then: The operation that made NaN of the infinity that this one made; empty if none did.
    """

    what: str
    seen_in: str
    layer: str = ""
    operation: str = ""
    backward: bool = False
    cause: str = ""
    line: str = ""
    picture: str = ""
    infinity: str = ""
    then: str = ""

    @property
    def head(self) -> str:
        """What was not finite, and where it was first seen."""
        return f"expected {self.what}; first seen in {self.seen_in}"

    @property
    def details(self) -> tuple[str, ...]:
        """One line for each of the other attributes that are known."""
        named = {
            "operation": self.operation,
            "cause": self.cause,
            "infinity": self.infinity,
            "line": self.line,
            "picture": self.picture,
            "then": self.then,
        }
        return tuple(f"{name}: {text}" for name, text in named.items() if text)

    def __str__(self) -> str:
        return "\n  ".join((self.head, *self.details))


def finding_of(what: str, source: Source, kind: Kind, n: int) -> Finding:
    """The finding for what made the numbers first.

    Where an operator made NaN of an infinity, that infinity was the first such number, unless a mask has it on purpose.

    Args:
        what: The loss or gradient that was not finite.
        source: The operator that made the first number of the kind, or the tensor that had it before.
        kind: Of the numbers.
        n: The pictures in the batch; 0 if that is not known.
    """
    infinities = _infinities(source) if isinstance(source, Event) and kind == "nan" else []
    first = next((each for each in infinities if not _is_constant(each)), None)
    then = infinity = ""
    if first is not None:
        then = f"nan in {_made(source, kind)}"
        source, kind = first, "inf"
    elif infinities:
        infinity = f"from {_made(infinities[0], 'inf')}"
    if isinstance(source, Leaf):
        return Finding(what, _tensor(source), cause=_first(source), picture=_picture_of(source, n), then=then)
    return Finding(
        what,
        _layer(source),
        source.layer.name,
        _operation(source) + (f", in the backward of {_forward_name(source)}" if source.node else ""),
        bool(source.node),
        cause_of(source, kind),
        line_of(source),
        _pictures(pictures_of(source, kind, n) if n else None, n),
        infinity,
        then,
    )


def beginnings(source: Source, kind: Kind) -> list[Source]:
    """What made a kind of number first, on the ways back from ``source``; first the way of the first such number."""
    found, todo, seen = [], [source], set()
    while todo:
        source = todo.pop()
        if id(source) in seen:
            continue
        seen.add(id(source))
        before = source.made_of.get(kind) if isinstance(source, Event) else None
        if before:
            todo += reversed(before)
        else:
            found.append(source)
    return found


def _infinities(event: Event) -> list[Source]:
    """What had made the infinite inputs of an operator first."""
    return [first for source in event.infinite for first in beginnings(source, "inf")]


def _made(source: Source, kind: Kind) -> str:
    """What made a number, why, and the place of the formula's line."""
    if isinstance(source, Leaf):
        return f"{_tensor(source)}: {_first(source)}"
    place = line_of(source).partition(": ")[0]
    text = f"{_layer(source)}, {_operation(source)}: {cause_of(source, kind)}"
    return f"{text} ({place})" if place else text


def _is_constant(source: Source) -> bool:
    """Whether an infinity was written on purpose, as in a mask."""
    return source.what in ("constant", "buffer") if isinstance(source, Leaf) else writes_constant(source)


def _layer(event: Event) -> str:
    part = "backward" if event.node else "output" if event.layer.name else "forward"
    named = (
        f"layer {event.layer.name!r} ({event.layer.type})" if event.layer.name else "the step, outside of all layers"
    )
    return f"the {part} of {named}"


def _operation(event: Event) -> str:
    format_ = event.values.get("dtype")
    return f"conversion to {str(format_).removeprefix('torch.')}" if event.name == "_to_copy" else event.name


def _forward_name(event: Event) -> str:
    """The forward operator whose backward runs: ``sqrt`` of ``SqrtBackward0``."""
    name = event.node.rstrip("0123456789").removesuffix("Backward").removesuffix("Function").rpartition("::")[2]
    return "".join(f"_{each.lower()}" if each.isupper() and index else each.lower() for index, each in enumerate(name))


def _tensor(leaf: Leaf) -> str:
    if leaf.what == "weight":
        return f"the weights of layer {leaf.name.rpartition('.')[0]!r} ({leaf.name})"
    if leaf.what == "buffer":
        return f"the buffer {leaf.name} of layer {leaf.name.rpartition('.')[0]!r}"
    return f"the {leaf.name}" if leaf.what == "batch" else "a constant of the step"


def _first(leaf: Leaf) -> str:
    found = first_bad(leaf.tensor.detach())
    if not found:
        return ""
    place = next(iter(found.values()))
    many = int((~leaf.tensor.isfinite()).sum())
    number = float(leaf.tensor.detach()[place])
    where = f" at [{', '.join(map(str, place))}]" if place else ""
    return f"{number}{where}" + (f", and {many - 1} more" if many > 1 else "")


def _picture_of(leaf: Leaf, n: int) -> str:
    if leaf.what != "batch" or not leaf.tensor.dim() or leaf.tensor.shape[0] != n:
        return ""
    bad = ~leaf.tensor.isfinite().flatten(1).all(1) if leaf.tensor.dim() > 1 else ~leaf.tensor.isfinite()
    return _pictures(tuple(int(index) for index in bad.nonzero().flatten()), n)


def _pictures(found: tuple[int, ...] | None, n: int) -> str:
    """The numbers of pictures in the batch."""
    if found is None:
        return ""
    if len(found) == n:
        return f"all {n} of the batch" if n > 1 else "0, the only one of the batch"
    shown = ", ".join(map(str, found[:5])) + ("..." if len(found) > 5 else "")
    return f"{shown} of the batch's {n} (0 to {n - 1})"
