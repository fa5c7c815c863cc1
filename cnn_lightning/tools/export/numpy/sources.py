"""The files that an archive holds beside the weights: the programs as they are installed, a text, and the licence."""

import ast
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, files
from importlib.resources import files as resources

from cnn_lightning.portable.layers.table import module_of
from cnn_lightning.portable.plan import Plan

START = "cnn_lightning.portable.__main__"
"""The file that Python runs; it is at the top of the archive."""

SHORT = {
    "cnn_lightning": '"""A part of cnn_lightning, {version}: the files that this network needs."""\n',
    "cnn_lightning.data": '"""How picture files become arrays, and the order of a training."""\n',
}
"""What these packages hold here instead of their own ``__init__.py``, which loads other files."""

README = """{net}: a trained network of cnn-lightning {version}, licence Apache-2.0

It needs Python 3.11 and NumPy 2.1, and Pillow to read pictures.

  python net.pyz predict picture.png --top 3
  python net.pyz layers
  python net.pyz test pictures            (pictures/CLASS/*.png)
  python net.pyz train pictures --epochs 2 --lr 0.01

This folder is what net.pyz holds: python -m zipfile -e net.pyz folder. "python folder predict ..." runs it too,
so you can change a formula and see what it does.

  cnn_lightning/ops/       the formulas: each operation in NumPy, its gradient below it
  cnn_lightning/portable/  the program: network.py goes forward and backward, optimizers.py makes the steps
  plan.json                the layers in their order, the classes, the normalisation: data, which names no code
  weights/                 the arrays, by the names of torch's state_dict

Pictures become {size} x {size} pixels ({fit}), {colours}; values (pixels / 255 - mean) / std.
A training starts without momentum, shows each picture as it is, and keeps the learning rate.
The classes: {classes}
"""


def collect(plan: Plan, version: str) -> dict[str, bytes]:
    """The files by their path in the archive; of the formulas, those that the plan needs.

    Args:
        plan: Of the network.
        version: Of this project.
    """
    needed = _closure([START, *(module_of(node.operation) for node in plan.nodes)])
    found = {"__main__.py": _read(START)} | {
        _path(module): SHORT[module].format(version=version).encode() if module in SHORT else _read(module)
        for module in sorted(needed - {START})
    }
    return found | {"README.txt": _text(plan, version).encode(), **_licence()}


def _text(plan: Plan, version: str) -> str:
    return README.format(
        net=plan.net,
        version=version,
        size=plan.image_size,
        fit={"squeeze": "squeezed to a square", "pad": "with white beside what is not square"}[plan.fit],
        colours="grey" if plan.in_channels == 1 else "colour" if plan.in_channels == 3 else "of several channels",
        classes=", ".join(plan.class_names),
    )


def _licence() -> dict[str, bytes]:
    """The licence's text, if the installation has it."""
    try:
        found = [path for path in files("cnn-lightning") or () if path.name == "LICENSE"]
    except PackageNotFoundError:
        return {}
    return {"LICENSE": found[0].read_binary()} if found else {}


def _closure(modules: Iterable[str]) -> set[str]:
    """The modules, those of this project that they import, and the packages that all of them are in."""
    found: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module in found:
            continue
        found.add(module)
        if "." in module:
            todo.append(module.rpartition(".")[0])
        if module not in SHORT:
            todo += _imports(_read(module).decode())
    return found


def _imports(text: str) -> list[str]:
    """The modules of this project that a file imports, inside of functions too."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cnn_lightning":
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [str(node.module), *(name for name in inside if _is_module(name))]
    return names


def _is_module(name: str) -> bool:
    return resources("cnn_lightning").joinpath(*_parts(name)).is_file()


def _read(module: str) -> bytes:
    """The text of a module as it is installed: an edited formula is taken as edited."""
    return resources("cnn_lightning").joinpath(*_parts(module)).read_bytes()


def _path(module: str) -> str:
    return "/".join(("cnn_lightning", *_parts(module)))


def _parts(module: str) -> list[str]:
    """The path of a module's file inside the package."""
    _, *parts = module.split(".")
    if resources("cnn_lightning").joinpath(*parts).is_dir():
        return [*parts, "__init__.py"]
    return [*parts[:-1], f"{parts[-1]}.py"]
