"""One table of cases: an operation's module, its native reference, good samples and bad ones beside them."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Make = Callable[[torch.Generator, torch.dtype], tuple[Any, ...]]


@dataclass(frozen=True)
class Sample:
    """A module's options and inputs.

    ``shape`` is that of one float input of normal numbers, ``extra`` makes the inputs after it; ``make`` makes all.
    Set ``gradcheck=False`` where numerical differences can't see the gradient (kinks, ties); say why beside it.
    """

    shape: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    extra: tuple[Callable[[torch.Generator], Any], ...] = ()
    train: bool = True
    gradcheck: bool = True
    make: Make | None = None

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Any, ...]:
        """Fresh inputs, equal for equal arguments up to the dtype's rounding."""
        generator = torch.Generator().manual_seed(seed)
        if self.make is not None:
            return self.make(generator, dtype)
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)
        return (x, *(make(generator) for make in self.extra))


@dataclass(frozen=True)
class Bad:
    """Options or inputs that torch refuses: ours must refuse them with the same exception type in one line."""

    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (2, 3, 8, 8)
    dtype: torch.dtype = torch.float32
    make: Make | None = None

    def inputs(self) -> tuple[Any, ...]:
        """The inputs to be refused."""
        if self.make is not None:
            return self.make(torch.Generator().manual_seed(0), self.dtype)
        return (torch.ones(self.shape).to(self.dtype),)


@dataclass(frozen=True)
class Case:
    """A layer, the native one it stands for, and what to try on both."""

    layer: type[torch.nn.Module]
    native: type[torch.nn.Module]
    samples: list[Sample]
    bad: list[Bad] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.layer.__name__


def load() -> list[Case]:
    """The rows of every file beside this one."""
    return [
        case
        for info in pkgutil.iter_modules(__path__)
        for case in importlib.import_module(f"{__name__}.{info.name}").CASES
    ]
