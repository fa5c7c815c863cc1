"""``cnn-lightning check``: grade a layer of your own, and print how each fault is usually mended.

With ``--kinks``: the gradient taken at each kink, tie, NaN and infinity, next to torch's, of one layer or of all.
"""

import ast
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import expect_writable, written
from cnn_lightning.model import LARGEST
from cnn_lightning.tools import parser as parsers
from cnn_lightning.tools.check import CheckReport, arguments, check_layer
from cnn_lightning.tools.check.kinks import Row, as_json, catalogue, show
from cnn_lightning.tools.check.scan import LEGEND, scan
from cnn_lightning.tools.check.surrogate import NAMED
from cnn_lightning.train.failures import readable
from cnn_lightning.train.suggestions import did_you_mean

_NAMED = 12
_COLORS = {"passed": "green", "failed": "bold red", "skipped": "dim"}


def main(args: list[str]) -> int:
    """Load, construct, grade, print; 1 if a rule failed, also if the reference or torch is at fault."""
    given = arguments.parser().parse_args(args)
    parsers.expect_seed(given.seed)
    expect_writable("--json", given.json)
    if given.json and not given.kinks:
        raise UserError("--json: expected --kinks beside it, got none")
    if given.kinks and given.surrogate:
        raise UserError("--surrogate: expected no --kinks beside it")
    if given.layer is None:
        if given.kinks:
            return _kinks(catalogue(), given.json)
        raise UserError("layer: expected my_file.py:MyLayer or my_package.MyLayer, or --kinks alone, got nothing")
    shapes = _shapes(given.shape)
    options = dict(_option("--options", text) for text in given.options)
    files: dict[Path, ModuleType] = {}
    layer = _construct(given.layer, _find("layer", given.layer, files), options, "", given.seed)
    reference = _other("reference", given.reference, given.reference_options, options, given.seed, files)
    surrogate = _other("surrogate", given.surrogate, given.surrogate_options, options, given.seed, files)
    if given.eval:
        layer.eval()
    generator = torch.Generator().manual_seed(given.seed)
    try:
        sample = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    except RuntimeError as error:
        raise UserError(
            f"--shape: expected an input that memory holds, got {given.shape!r}: {readable(error)}"
        ) from None
    try:
        if given.kinks:
            return _kinks(scan(layer, sample, reference), given.json, "layer", LEGEND)
        report = check_layer(layer, sample, reference, surrogate)
    except UserError:
        raise
    except SystemExit as stop:  # its exit code would be that of the grade
        raise UserError(f"layer: expected {given.layer} to return, got a call of exit({stop.code})") from None
    except ValueError as error:
        raise UserError(f"--{error}") from error
    _print(report, Console())
    return 0 if report.passed else 1


def _kinks(rows: list[Row], path: str | None, ours: str = "NumPy", legend: str = "") -> int:
    """Print the rows of `cnn_lightning.tools.check.kinks`; 1 if one differs from torch's."""
    console = Console()
    show(rows, console, ours, legend)
    if path:
        with written("--json", path) as temporary:
            temporary.write_text(json.dumps(as_json(rows), indent=1))
        console.print(f"json: {path}", highlight=False, soft_wrap=True)
    return int(any(row.differs for row in rows))


def _print(report: CheckReport, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("rule", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("what it requires", overflow="fold")
    for grade in report.grades:
        asks = f"[dim]{escape(grade.skipped)}[/]" if grade.skipped else escape(grade.asks)
        table.add_row(grade.rule, f"[{_COLORS[grade.result]}]{grade.result}[/]", asks)
    console.print(table)
    for finding in report.findings:
        console.print(f"[bold]{escape(finding.rule)}[/]: {escape(finding.wrong)}", soft_wrap=True, highlight=False)
        console.print(f"  where: {escape(finding.where)}", soft_wrap=True, highlight=False)
        console.print(f"  mend:  {escape(finding.mend)}", soft_wrap=True, highlight=False)
    console.print(escape(report.verdict), style="green" if report.passed else "bold red", soft_wrap=True)


# ---- what was asked for


def _shapes(text: str) -> list[tuple[int, ...]]:
    try:
        shapes = [tuple(int(number) for number in part.split(",")) for part in text.split()]
    except ValueError:
        shapes = []
    if not shapes or any(not 1 <= number <= LARGEST for shape in shapes for number in shape):
        raise UserError(f"--shape: expected whole numbers of at least 1 such as 2,3,8,8, got {text!r}")
    return shapes


def _option(flag: str, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"{flag}: expected name=value, got {text!r}")
    for read in (ast.literal_eval, json.loads):
        try:
            return name, read(value)
        except (ValueError, SyntaxError):
            continue
    return name, value


def _construct(target: str, kind: Any, options: dict[str, Any], what: str, seed: int) -> torch.nn.Module:
    """An instance of ``kind``; ``what`` is "reference", "surrogate" or empty."""
    if not _is_module(kind):
        flag = f"--{what}" if what else "layer"
        raise UserError(f"{flag}: expected a subclass of torch.nn.Module, got {target}, which is {_kind(kind)}")
    torch.manual_seed(seed)
    try:
        module: torch.nn.Module = kind(**options)
    except (Exception, SystemExit) as error:
        flag = f"--{what}_options" if what else "--options"
        raise UserError(f"{flag}: {kind.__name__}({_listed(options)}) raised {_line(error)}") from error
    return module


def _is_module(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.nn.Module)


def _kind(found: Any) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else f"a value of type {type(found).__name__}"


def _other(
    what: str,
    target: str | None,
    texts: list[str] | None,
    of_layer: dict[str, Any],
    seed: int,
    files: dict[Path, ModuleType],
) -> Callable[..., Any] | None:
    """The reference or the surrogate; a class is constructed with its options, by default those of the layer."""
    if target is None:
        return None
    options = of_layer if texts is None else dict(_option(f"--{what}_options", text) for text in texts)
    if what == "surrogate" and ":" not in target and "." not in target:
        if target not in NAMED:
            expected = f"one of {', '.join(NAMED)}, my_file.py:function or my_package.function"
            raise UserError(f"--surrogate: expected {expected}, got {target!r}{did_you_mean(target, list(NAMED))}")
        return _construct(target, NAMED[target], options if texts is not None else {}, what, seed)
    found = _find(f"--{what}", target, files)
    if isinstance(found, type):
        return _construct(target, found, options, what, seed)
    if not callable(found):
        raise UserError(
            f"--{what}: expected a function or a subclass of torch.nn.Module, got {target}, which is {_kind(found)}"
        )
    function: Callable[..., Any] = found
    return function


def _find(flag: str, target: str, files: dict[Path, ModuleType]) -> Any:
    """The object that ``file.py:name`` or ``package.module.name`` names; ``files`` are those loaded already."""
    place, colon, name = target.rpartition(":" if ":" in target else ".")
    if not place or not name or target.endswith(".py"):
        raise UserError(f"{flag}: expected my_file.py:MyLayer or my_package.MyLayer, got {target!r}")
    try:
        module = (
            _load(flag, Path(place), files)
            if colon == ":" and place.endswith(".py")
            else importlib.import_module(place)
        )
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{flag}: {place} could not be loaded: {_line(error)}") from error
    if not hasattr(module, name):
        here = [key for key, value in vars(module).items() if _is_module(value) and value.__module__ == module.__name__]
        named = ", ".join(here[:_NAMED]) + (f" and {len(here) - _NAMED} more" if len(here) > _NAMED else "")
        known = [key for key, value in vars(module).items() if _is_module(value)]
        found = f"found {named or 'no torch.nn.Module'}{did_you_mean(name, known)}"
        raise UserError(f"{flag}: expected {place} to define {name}, {found}")
    return getattr(module, name)


def _load(flag: str, path: Path, files: dict[Path, ModuleType]) -> ModuleType:
    """Run a file as a module of its own name; meanwhile its folder is importable, as with ``python file.py``.

    A file is run once: classes of a second run would not be those that pickle finds.
    """
    if not path.is_file():
        raise UserError(f"{flag}: expected a Python file, found none at {path}")
    if path.resolve() in files:
        return files[path.resolve()]
    # Pickle finds classes by the module's name. A name that is taken (a file called torch.py) is not replaced.
    free = path.stem.isidentifier() and importlib.util.find_spec(path.stem) is None
    name = path.stem if free else "_checked_" + re.sub(r"\W", "_", path.stem)
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
    files[path.resolve()] = module
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
