"""The learner's file as a module. Its earlier files, which it may import, are read from the same folder."""

import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from cnn_lightning.errors import one_line
from cnn_lightning.tools.learn.course import EXERCISES
from cnn_lightning.tools.learn.course.exercise import Call, Exercise


@contextmanager
def loaded(exercise: Exercise, path: Path) -> Iterator[ModuleType]:
    """Give the module of a learner's file.

    In the block, the files of earlier exercises that it imports are those beside it. Formulas replace a file that is
    missing. Every file is read anew, never from a compiled one.

    Raises:
        BaseException: Whatever the file raises while it runs, or an `OSError` if it can't be read.
    """
    names = [EXERCISES[number].stem for number in exercise.uses]
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(path.parent))
    try:
        for number, name in zip(exercise.uses, names, strict=True):
            beside = path.parent / f"{name}.py"
            sys.modules[name] = module_of(beside) if beside.is_file() else _stand_in(EXERCISES[number])
        yield module_of(path)
    finally:
        sys.path.remove(str(path.parent))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def module_of(path: Path) -> ModuleType:
    """Run a file as a module of its name."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def _stand_in(exercise: Exercise) -> ModuleType:
    """The file of an exercise with its functions replaced by formulas."""
    module = module_of(exercise.template)
    for task in exercise.tasks:
        setattr(module, task.name, _as(getattr(module, task.name), task.formula))
    return module


def _as(function: Call, formula: Call) -> Call:
    """A formula with the parameters of a learner's function: options may be given by position, too."""
    parameters = inspect.signature(function)
    options = {name for name, each in inspect.signature(formula).parameters.items() if each.kind is each.KEYWORD_ONLY}

    def call(*arguments: Any, **named: Any) -> Any:
        given = parameters.bind(*arguments, **named).arguments
        arrays = [value for name, value in given.items() if name not in options]
        return formula(*arrays, **{name: value for name, value in given.items() if name in options})

    return call


def place_of(error: BaseException, path: Path) -> str:
    """The innermost line of the learner's files that an error passed, as ``function (file:line)``."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == path.parent
    ]
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or path).name}:{error.lineno}"
    return f"{frames[-1].name} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else path.name


def is_unwritten(error: BaseException, path: Path) -> bool:
    """Whether a line of the learner's files raised NotImplementedError, as the templates do."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, NotImplementedError) and Path(frames[-1].filename).parent == path.parent


def words_of(error: BaseException) -> str:
    """The type and the text of an error, on one line."""
    text = error.msg if isinstance(error, SyntaxError) else one_line(error, 160)
    return f"raised {type(error).__name__}: {text}"
