"""The rules for one function of the learner."""

import tracemalloc
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cnn_lightning.tools.check.report import Finding, Grade
from cnn_lightning.tools.learn.course.exercise import OUTPUTS, Array, Call, Case, Task
from cnn_lightning.tools.learn.explaining import Answer, directions_of, explain, is_close, suspect, worst
from cnn_lightning.tools.learn.loading import is_unwritten, place_of, words_of

_STEP = 1e-6
ASKS = {
    "values": "The result is that of the formula.",
    "gradient": "The gradient is that of the forward.",
    "ties": "At ties and kinks the gradient goes where torch's goes.",
    "large numbers": "Large numbers do not overflow.",
    "evaluation": "Given statistics are used.",
    "memory": "The memory stays small.",
    "dtype": "float32 in, float32 out.",
    "inputs unwritten": "The arguments keep their values.",
}
_OF_ARRAYS = ("dtype", "inputs unwritten")
_MENDS = {
    "written": "write it in place of the line that raises NotImplementedError",
    "raised": "the message names the line; print the shapes before it",
    "dtype": "give the arrays that you make the dtype of the input: np.zeros_like(x), or np.zeros(shape, x.dtype)",
    "inputs unwritten": "work on a copy, or write the result into a new array: the caller goes on with its own",
    "grad_y": "chain rule: the gradient by the input is the gradient by the output times the slope",
    "memory": "make the columns of one block at a time, and write its result into its place of y",
}


class Graded:
    """A function of the learner.

    Args:
        task: What it should give.
        module: The learner's file.
        file: Its path.

    Attributes:
        unwritten: Whether the function, or one that it calls, is not written yet; known after `grades`.
    """

    def __init__(self, task: Task, module: ModuleType, file: Path) -> None:
        self.task, self.module, self.file, self.unwritten = task, module, file, False
        self._forward: Call | None = getattr(module, task.forward, None)

    def grades(self) -> list[Grade]:
        """The grade of each rule. After one that fails, those about values are skipped; after an error, all are."""
        grades: list[Grade] = []
        wrong = raised = False
        for rule in rules(self.task):
            of_values = rule not in _OF_ARRAYS
            if raised or (wrong and of_values):
                grades.append(skip(self.task, rule, "it does not run" if raised else "its values are wrong"))
                continue
            findings, raised = self._apply(rule)
            grades.append(Grade(_name(self.task, rule), tuple(findings), asks=ASKS[rule]))
            wrong = wrong or bool(findings and of_values)
        return grades

    def _apply(self, rule: str) -> tuple[list[Finding], bool]:
        """The findings of a rule, and whether the function raised an error."""
        apply = {"dtype": self._dtype, "inputs unwritten": self._unwritten_inputs}.get(rule)
        try:
            return apply() if apply else self._values(rule), False
        except (Exception, SystemExit) as error:  # the learner's code may raise anything
            place = place_of(error, self.file)
            if is_unwritten(error, self.file):
                self.unwritten = True
                return [Finding(rule, f"{place.split(' ')[0]} is not written yet", place, _MENDS["written"])], True
            return [Finding(rule, words_of(error), place, _MENDS["raised"])], True

    # ---- the rules

    def _values(self, rule: str) -> list[Finding]:
        """Results equal those of the formula; a gradient may instead be that of the learner's own forward."""
        rows, raised = [], None
        for case in self.task.cases:
            if (case.rule or _main(self.task)) != rule:
                continue
            try:
                rows.append(self._answers(case))
            except (Exception, SystemExit) as error:  # a usual mistake may fail with some shapes only
                raised = raised or error
        findings = self._swapped(rule, rows)
        for index in range(0 if findings else len(self.task.gives)):
            findings += self._explained(rule, index, [row[index] for row in rows])
        if raised and not self._is_named(findings):
            raise raised
        if rule == "memory" and not findings:
            findings = self._memory()
        return findings[:1] if self.task.is_chain else findings

    def _swapped(self, rule: str, rows: Sequence[Sequence[Answer]]) -> list[Finding]:
        """Whether two results are in each other's place."""
        for a, b in combinations(range(len(self.task.gives)), 2):
            pairs = [(row[a], row[b]) for row in rows]
            if any(one.is_right for one, _ in pairs):
                continue
            if pairs and all(is_close(one.got, other.right) and is_close(other.got, one.right) for one, other in pairs):
                wrong = f"{self.task.gives[a]} and {self.task.gives[b]} are in each other's place"
                mend = f"return the results in this order: {', '.join(self.task.gives)}"
                return [Finding(rule, wrong, self._where(), mend)]
        return []

    def _explained(self, rule: str, index: int, answers: Sequence[Answer]) -> list[Finding]:
        """What is wrong with one result, if anything is."""
        first = next((each for each in answers if not each.is_right and not self._is_of_own_forward(each, index)), None)
        if first is None:
            return []
        named = suspect(self.task, index, answers)
        if named is None and self._ignores_grad_y(first, index):
            named = f"{self.task.gives[index]} does not change with grad_y: it lacks that factor", _MENDS["grad_y"]
        wrong, mend = named or explain(self.task, index, first, self._slopes(first, index))
        return [Finding(rule, wrong, self._where() + worst(first), mend)]

    def _ignores_grad_y(self, answer: Answer, index: int) -> bool:
        """Whether a gradient stays the same for twice the upstream gradient."""
        if not self.task.forward or answer.got is None or not (np.any(answer.got) and np.isfinite(answer.got).all()):
            return False
        grad_y, *saved = answer.arguments
        return is_close(self._call((2 * grad_y, *saved), answer.case)[index], np.asarray(answer.got))

    def _is_of_own_forward(self, answer: Answer, index: int) -> bool:
        """Whether the learner has another forward than the formula, and this is its gradient."""
        if self._forward is None or self.task.forward_formula is None or np.shape(answer.got) != answer.right.shape:
            return False
        slopes = self._slopes(answer, index)
        if slopes is None:
            return False
        point, options = answer.case.point.values(), answer.case.options
        own, formula = (_outputs(each(*point, **options))[0] for each in (self._forward, self.task.forward_formula))
        products = np.array([float((np.asarray(answer.got) * direction).sum()) for direction in slopes[0]])
        return not is_close(own, formula) and is_close(products, np.array(slopes[1]), 1e-5)

    def _is_named(self, findings: Sequence[Finding]) -> bool:
        """Whether one of the findings is a usual mistake of this function."""
        words = tuple(suspect.words for suspect in self.task.suspects)
        return any(finding.wrong.endswith((*words, "in each other's place")) for finding in findings)

    def _memory(self) -> list[Finding]:
        case = next(case for case in self.task.cases if case.rule == "memory")
        arguments = self._arguments(case)
        assert self.task.most_bytes is not None
        limit = self.task.most_bytes(*arguments, **case.options)
        function = self.task.function(self.module)
        tracemalloc.start()
        try:
            function(*arguments, **case.options)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        if peak <= limit:
            return []
        wrong = (
            f"it takes {peak / 1e6:.1f} MB at its peak, expected at most {limit / 1e6:.1f} MB: the columns of more "
            "than one block are there at once"
        )
        return [Finding("memory", wrong, f"{self._where()}; {case.label}", _MENDS["memory"])]

    def _dtype(self) -> list[Finding]:
        case = self.task.cases[0]
        arguments = tuple(_narrow(argument) for argument in self._arguments(case))
        expected = _several(self.task, self.task.formula(*arguments, **case.options))
        for name, got, right in zip(self.task.gives, self._call(arguments, case), expected, strict=True):
            if got is not None and right.dtype == np.float32 != np.asarray(got).dtype:
                wrong = f"{name} is {np.asarray(got).dtype} for inputs in float32"
                return [Finding("dtype", wrong, self._where(), _MENDS["dtype"])]
        return []

    def _unwritten_inputs(self) -> list[Finding]:
        case = self.task.cases[0]
        arguments = self._arguments(case)
        given = tuple(argument.copy() for argument in arguments)
        self._call(given, case)
        names = ("grad_y", *self.task.saved) if self.task.forward else tuple(case.point)
        for name, before, after in zip(names, arguments, given, strict=True):
            if not np.array_equal(before, after, equal_nan=True):
                wrong = f"it writes into its argument {name!r}"
                return [Finding("inputs unwritten", wrong, self._where(), _MENDS["inputs unwritten"])]
        return []

    # ---- calls

    def _answers(self, case: Case) -> list[Answer]:
        """Each result of the learner's function beside that of the formula."""
        arguments = self._arguments(case)
        expected = _several(self.task, self.task.formula(*arguments, **case.options))
        given = tuple(argument.copy() for argument in arguments)
        got = self._call(given, case)
        return [Answer(case, arguments, *pair) for pair in zip(got, expected, strict=True)]

    def _call(self, arguments: Sequence[Array], case: Case) -> tuple[Any, ...]:
        """The results of the learner's function.

        Raises:
            ValueError: It gives another number of results.
        """
        found = self.task.function(self.module)(*arguments, **case.options)
        if len(self.task.gives) == 1:
            return (found,)
        count = len(found) if isinstance(found, tuple | list) else 1
        if count != len(self.task.gives):
            names = ", ".join(self.task.gives)
            raise ValueError(f"{self.task.name}: expected {len(self.task.gives)} results ({names}), got {count}")
        return tuple(found)

    def _arguments(self, case: Case) -> tuple[Array, ...]:
        """What the function is called with; a backward gets a gradient, and what it saved of its forward."""
        task = self.task
        if task.forward_formula is None:
            return tuple(case.point.values())
        outputs = _outputs(task.forward_formula(*case.point.values(), **case.options))
        grad_y = np.asarray(np.random.default_rng(7).standard_normal(outputs[0].shape))
        known = dict(zip(OUTPUTS, outputs, strict=False)) | dict(case.point)
        return grad_y, *(known[name] for name in task.saved)

    def _slopes(self, answer: Answer, index: int) -> tuple[list[Array], list[float]] | None:
        """Directions, and the slopes of the learner's own forward along them; None if it has none."""
        case = answer.case
        names = [name for name, value in case.point.items() if value.dtype.kind == "f"]
        if self._forward is None or index >= len(names):
            return None
        forward, name = self._forward, names[index]

        def value(shift: Array) -> float:
            point = {**case.point, name: case.point[name] + shift}
            return float((_outputs(forward(*point.values(), **case.options))[0] * answer.arguments[0]).sum())

        directions = directions_of(case.point[name])
        try:
            return directions, [(value(_STEP * u) - value(-_STEP * u)) / (2 * _STEP) for u in directions]
        except (Exception, SystemExit):  # the forward is not written, or does not run
            return None

    def _where(self) -> str:
        """The learner's function with file and line."""
        code = getattr(getattr(self.module, self.task.name, None), "__code__", None)
        return f"{self.task.name} ({self.file.name}{f':{code.co_firstlineno}' if code else ''})"


def rules(task: Task) -> list[str]:
    """The rules for a function, in their order."""
    return [*dict.fromkeys(case.rule or _main(task) for case in task.cases), "dtype", "inputs unwritten"]


def skip(task: Task, rule: str, reason: str) -> Grade:
    """The grade of a rule that was not applied."""
    return Grade(_name(task, rule), skipped=reason, asks=ASKS[rule])


def _main(task: Task) -> str:
    return "gradient" if task.forward else "values"


def _name(task: Task, rule: str) -> str:
    return f"{rule} ({task.name})"


def _outputs(found: Any) -> tuple[Array, ...]:
    """The results of a forward."""
    return tuple(map(np.asarray, found)) if isinstance(found, tuple) else (np.asarray(found),)


def _several(task: Task, found: Any) -> tuple[Array, ...]:
    """The results of a formula: one for each name."""
    return (np.asarray(found),) if len(task.gives) == 1 else tuple(map(np.asarray, found))


def _narrow(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.kind == "f" else array
