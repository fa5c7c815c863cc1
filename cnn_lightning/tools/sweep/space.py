"""The search space: options of ``fit``, each with a range of numbers or a list of choices."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cnn_lightning.errors import UserError
from cnn_lightning.train.suggestions import did_you_mean

if TYPE_CHECKING:
    from optuna.trial import Trial

RANGE = ("low", "high", "step", "log")
EXPECTED = "a list of choices, or a mapping with low and high, and step or log"


@dataclass(frozen=True)
class Range:
    """Whole numbers if all its numbers are written as such, else real ones.

    Args:
        low: The least value.
        high: The largest value.
        step: The distance of two values; None for 1, or for any real number.
        log: Whether to draw the logarithm evenly.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def draw(self, trial: "Trial", option: str) -> Any:
        """The value of a trial's option, drawn by Optuna if the trial has none yet."""
        if isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None):
            return trial.suggest_int(option, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(option, self.low, self.high, step=self.step, log=self.log)

    @property
    def candidates(self) -> list[Any]:
        """The values that the parser of ``fit`` is asked about."""
        numbers = (self.low, self.high, self.step or 1)
        return [value if all(isinstance(each, int) for each in numbers) else float(value) for value in numbers[:2]]

    @property
    def plain(self) -> Any:
        """The range as YAML has it."""
        return {name: getattr(self, name) for name in RANGE if getattr(self, name) not in (None, False)}

    def value(self, drawn: Any) -> Any:
        """The value of the option that Optuna keeps as ``drawn``."""
        return drawn


@dataclass(frozen=True)
class Choices:
    """Any values of YAML. Optuna keeps plain values alone, so it draws their JSON.

    Args:
        values: The values.
    """

    values: tuple[Any, ...]

    def draw(self, trial: "Trial", option: str) -> Any:
        """The value of a trial's option, drawn by Optuna if the trial has none yet."""
        return self.value(trial.suggest_categorical(option, [json.dumps(value) for value in self.values]))

    @property
    def candidates(self) -> list[Any]:
        """The values that the parser of ``fit`` is asked about: all."""
        return list(self.values)

    @property
    def plain(self) -> Any:
        """The choices as YAML has them."""
        return list(self.values)

    def value(self, drawn: Any) -> Any:
        """The value of the option that Optuna keeps as ``drawn``."""
        return json.loads(drawn)


Space = dict[str, Range | Choices]
"""An option of ``fit``, without dashes -> its values."""


def read_space(space: Any) -> Space:
    """The search space of what YAML has read.

    Raises:
        UserError: It is empty, or has a range or choices that make no sense.
    """
    if not isinstance(space, Mapping) or not space:
        raise UserError(f"sweep.space: expected a mapping of options of fit, each with {EXPECTED}, got {space!r}")
    return {
        str(name).replace(".init_args.", "."): _read(f"sweep.space.{name}", values) for name, values in space.items()
    }


def flag(option: str, value: Any) -> str:
    """The flag of ``fit`` that sets an option: text as it is, other values as JSON, which is YAML."""
    return f"--{option}={value if isinstance(value, str) else json.dumps(value)}"


def number(name: str, value: Any) -> float:
    """A finite number; also from text, because YAML 1.1 reads 1e-4 as text and the parser of ``fit`` doesn't.

    Raises:
        UserError: It is none.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise UserError(f"{name}: expected a number, got {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{name}: expected a number, got {value!r}")
    return value


def _read(name: str, values: Any) -> Range | Choices:
    if isinstance(values, list):
        return _choices(name, values)
    if not isinstance(values, Mapping) or not {"low", "high"} <= values.keys():
        raise UserError(f"{name}: expected {EXPECTED}, got {values!r}")
    for key in values:
        if key not in RANGE:
            raise UserError(f"{name}: expected {EXPECTED}, got {key!r}{did_you_mean(str(key), RANGE)}")
    return _range(name, values)


def _choices(name: str, values: list[Any]) -> Choices:
    if not values:
        raise UserError(f"{name}: expected at least one choice, got an empty list")
    try:
        texts = [json.dumps(value) for value in values]
    except TypeError as error:  # YAML reads 2026-01-01 as a date
        raise UserError(f"{name}: expected texts, numbers, booleans, null, lists or mappings: {error}") from None
    twice = next((text for index, text in enumerate(texts) if text in texts[:index]), None)
    if twice is not None:
        raise UserError(f"{name}: expected different choices, got {twice} twice")
    return Choices(tuple(values))


def _range(name: str, values: Mapping[Any, Any]) -> Range:
    low, high = number(f"{name}.low", values["low"]), number(f"{name}.high", values["high"])
    step = None if values.get("step") is None else number(f"{name}.step", values["step"])
    log = values.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{name}.log: expected true or false, got {log!r}")
    if low > high:
        raise UserError(f"{name}.low: expected at most high, {high}, got {low}")
    if log and low <= 0:
        raise UserError(f"{name}.low: expected above 0, because log is true, got {low}")
    if log and step is not None:
        raise UserError(f"{name}.step: expected none, because log is true, got {step}")
    if step is not None:
        if step <= 0:
            raise UserError(f"{name}.step: expected above 0, got {step}")
        if all(isinstance(each, int) for each in (low, high, step)):
            high = low + (high - low) // step * step  # the largest value that a step reaches
    return Range(low, high, step, log)
