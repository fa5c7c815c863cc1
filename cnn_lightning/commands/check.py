"""``cnn-lightning check``: grade a layer of your own, and say how each fault is usually mended."""

import ast
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cnn_lightning.check import CheckReport, check_layer
from cnn_lightning.commands import parser as parsers
from cnn_lightning.errors import UserError

HELP = "grade a layer of your own"

_COLORS = {"passed": "green", "failed": "bold red", "skipped": "dim"}


def main(args: list[str]) -> int:
    """Load, construct, grade, print; 1 where something failed."""
    parser = parsers.make("check", __doc__)
    parser.add_argument("layer", help="my_file.py:MyLayer, or an import path such as my_package.layers.MyLayer")
    parser.add_argument("--shape", default="2,3,8,8", help="of the input; several inputs: '2,3,8,8 2,3'")
    parser.add_argument("--options", nargs="*", default=[], help="of the constructor: in_channels=3 kernel_size=[3,3]")
    parser.add_argument(
        "--reference", type=str | None, default=None, help="what it should equal: torch.nn.ReLU, ref.py:f"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the parameters and the input")
    parser.add_argument("--eval", action="store_true", help="grade it in evaluation mode")
    given = parser.parse_args(args)
    shapes = _shapes(given.shape)
    options = dict(_option(text) for text in given.options)
    layer = _construct(given.layer, _find(given.layer), options, "layer", given.seed)
    reference = _reference(given.reference, options, given.seed)
    if given.eval:
        layer.eval()
    generator = torch.Generator().manual_seed(given.seed)
    sample = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    try:
        report = check_layer(layer, sample, reference)
    except ValueError as error:
        raise UserError(f"--reference: {error}") from error
    _print(report, Console())
    return 0 if report.passed else 1


def _print(report: CheckReport, console: Console) -> None:
    table = Table(title=f"{report.layer}: {'passed' if report.passed else 'failed'}", title_justify="left")
    for heading in ("rule", "result", "found"):
        table.add_column(heading, overflow="fold")
    for grade in report.grades:
        color = _COLORS[grade.result]
        found = "; ".join(finding.wrong for finding in grade.findings) or grade.skipped
        table.add_row(grade.rule, f"[{color}]{grade.result}[/]", escape(found))
    console.print(table)
    for finding in report.findings:
        console.print(f"[bold]{escape(finding.rule)}[/]: {escape(finding.wrong)}", soft_wrap=True, highlight=False)
        console.print(f"  where: {escape(finding.where)}", soft_wrap=True, highlight=False)
        console.print(f"  mend:  {escape(finding.mend)}", soft_wrap=True, highlight=False)


# ---- what was asked for


def _shapes(text: str) -> list[tuple[int, ...]]:
    try:
        shapes = [tuple(int(number) for number in part.split(",")) for part in text.split()]
    except ValueError:
        shapes = []
    if not shapes or any(number < 1 for shape in shapes for number in shape):
        raise UserError(f"--shape: expected whole numbers of at least 1 such as 2,3,8,8, got {text!r}")
    return shapes


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"--options: expected name=value, got {text!r}")
    for read in (ast.literal_eval, json.loads):
        try:
            return name, read(value)
        except (ValueError, SyntaxError):
            continue
    return name, value


def _construct(target: str, kind: Any, options: dict[str, Any], what: str, seed: int) -> torch.nn.Module:
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise UserError(f"{what}: expected a subclass of torch.nn.Module, got {target}, which is {kind!r}")
    torch.manual_seed(seed)
    try:
        return kind(**options)
    except Exception as error:
        raise UserError(f"--options: {kind.__name__}({_listed(options)}) raised {_line(error)}") from error


def _reference(target: str | None, options: dict[str, Any], seed: int) -> Callable[..., Any] | None:
    if target is None:
        return None
    found = _find(target)
    if isinstance(found, type):
        return _construct(target, found, options, "--reference", seed)
    if not callable(found):
        raise UserError(f"--reference: expected a function or a subclass of torch.nn.Module, got {target}")
    function: Callable[..., Any] = found
    return function


def _find(target: str) -> Any:
    """What ``file.py:name`` or ``package.module.name`` names."""
    place, colon, name = target.rpartition(":" if ":" in target else ".")
    if not place or not name:
        raise UserError(f"layer: expected my_file.py:MyLayer or my_package.MyLayer, got {target!r}")
    try:
        module = _load(Path(place)) if colon == ":" and place.endswith(".py") else importlib.import_module(place)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{place}: could not be loaded: {_line(error)}") from error
    found = getattr(module, name, None)
    if found is None:
        here = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        raise UserError(f"{place}: expected a class named {name}, found {_listed(here) or 'no class'}")
    return found


def _load(path: Path) -> ModuleType:
    """Run a file as a module of its own name, its folder importable meanwhile, as ``python file.py`` would have it."""
    if not path.is_file():
        raise UserError(f"layer: expected a Python file, found none at {path}")
    # Pickle finds classes by the module's name. A name that is taken (a file called torch.py) stays with its owner.
    name = path.stem if importlib.util.find_spec(path.stem) is None else f"_checked_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable(path.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _listed(names: Sequence[str] | dict[str, Any]) -> str:
    if isinstance(names, dict):
        return ", ".join(f"{name}={value!r}" for name, value in names.items())
    return ", ".join(names)
