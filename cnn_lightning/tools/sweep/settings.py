"""What a sweep does: the section ``sweep`` of a config, with the flags of the command above it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from cnn_lightning.errors import UserError
from cnn_lightning.model import LARGEST
from cnn_lightning.tools.sweep.space import Space, number, read_space
from cnn_lightning.train.suggestions import did_you_mean

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

DIRECTIONS = ("max", "min")
SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "halving", "hyperband", "none")
TRIALS = 20


@dataclass(frozen=True)
class Settings:
    """The checked section.

    Args:
        space: The options that are searched.
        trials: The number of trials of the whole sweep.
        metric: What is measured after each epoch; the best epoch counts.
        direction: Whether a large value is good (max) or a small one (min).
        sampler: How options are chosen: tpe learns from the trials before, random doesn't.
        seed: Of the choice of options.
        pruner: What stops a trial that is worse than others at the same epoch; ``none`` for nothing.
        timeout: No trial begins after so many seconds; None for no limit.
    """

    space: Space
    trials: int = TRIALS
    metric: str = "val_acc"
    direction: str = "max"
    sampler: str = "tpe"
    seed: int = 0
    pruner: str = "median"
    timeout: float | None = None

    @property
    def plain(self) -> dict[str, Any]:
        """What makes this sweep another one: everything but how long it goes on."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("trials", "timeout"):
            del kept[name]
        return kept | {"space": {name: values.plain for name, values in self.space.items()}}

    def better(self, a: float, b: float) -> float:
        """The better one of two values."""
        return max(a, b) if self.direction == "max" else min(a, b)

    def make_sampler(self, number: int) -> "BaseSampler":
        """The sampler of one trial.

        Its random numbers depend on the seed and the trial alone, so that a sweep that was stopped, or several
        processes, never draw the same numbers again.
        """
        import numpy as np
        from optuna.samplers import RandomSampler, TPESampler

        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.sampler == "random":
            return RandomSampler(seed)
        return TPESampler(seed=seed, constant_liar=True)  # keeps away from the trials that others run just now

    def make_pruner(self) -> "BasePruner":
        """The pruner, with Optuna's defaults."""
        from optuna import pruners

        kinds: dict[str, Any] = {
            "median": pruners.MedianPruner,
            "halving": pruners.SuccessiveHalvingPruner,
            "hyperband": pruners.HyperbandPruner,
            "none": pruners.NopPruner,
        }
        made: BasePruner = kinds[self.pruner]()
        return made


def read_settings(section: Any) -> Settings:
    """The settings of what YAML and the flags gave.

    Raises:
        UserError: An unknown name, or a value that makes no sense.
    """
    if not isinstance(section, Mapping):
        raise UserError(f"sweep: expected a mapping with space, got {section!r}")
    known = [each.name for each in fields(Settings)]
    for name in section:
        if name not in known:
            meant = did_you_mean(str(name), known)
            raise UserError(f"sweep.{name}: expected one of {', '.join(known)}, got {name!r}{meant}")
    if "space" not in section:
        raise UserError("sweep.space: expected the options of fit that are searched, got none")
    given = {name: value for name, value in section.items() if value is not None}
    metric = given.get("metric", Settings.metric)
    if not isinstance(metric, str) or not metric.startswith("val_"):
        raise UserError(f"sweep.metric: expected a number of the validation, as val_acc or val_loss, got {metric!r}")
    timeout = None if "timeout" not in given else number("sweep.timeout", given["timeout"])
    if timeout is not None and timeout <= 0:
        raise UserError(f"sweep.timeout: expected above 0 seconds, got {timeout}")
    return Settings(
        space=read_space(section["space"]),
        trials=_whole("trials", given.get("trials", TRIALS), 1, LARGEST),
        metric=metric,
        direction=_one_of("direction", given.get("direction", "min" if "loss" in metric else "max"), DIRECTIONS),
        sampler=_one_of("sampler", given.get("sampler", Settings.sampler), SAMPLERS),
        seed=_whole("seed", given.get("seed", Settings.seed), 0, 2**32 - 1),
        pruner=_one_of("pruner", section.get("pruner", Settings.pruner) or "none", PRUNERS),
        timeout=timeout,
    )


def _whole(name: str, value: Any, least: int, most: int) -> int:
    found = number(f"sweep.{name}", value)
    if found != int(found) or not least <= found <= most:
        raise UserError(f"sweep.{name}: expected a whole number from {least} to {most}, got {value}")
    return int(found)


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        meant = did_you_mean(str(value), known)
        raise UserError(f"sweep.{name}: expected {', '.join(known[:-1])} or {known[-1]}, got {value!r}{meant}")
    return str(value)
