"""Names that the user probably meant: the known name that is most like a mistyped one."""

from collections.abc import Iterable
from difflib import get_close_matches

OTHER_NAMES = {
    "batch": "data.batch_size",
    "checkpoint": "ckpt_path",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "learning_rate": "model.lr",
    "output": "trainer.default_root_dir",
    "resume": "ckpt_path",
    "seed": "seed_everything",
    "steps": "trainer.max_steps",
    "workers": "data.num_workers",
}
"""Names that other programs give to options of a training."""

CUTOFF = 0.6
"""The least similarity of two names, from 0 to 1, for a suggestion; the default of `difflib.get_close_matches`."""


def near(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``word``; None if none is similar."""
    names = {name.casefold(): name for name in known}
    found = get_close_matches(word.casefold(), names, 1, CUTOFF)
    return names[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """The end of a message that suggests a name, ``; did you mean NAME?``; empty if no name is similar."""
    found = near(word, known)
    return f"; did you mean {before}{found}?" if found else ""


def near_option(word: str, known: Iterable[str]) -> str | None:
    """The option, with its groups, that is most like ``word``; ``word`` may lack the groups or be an `OTHER_NAMES`."""
    options = list(known)
    if "." not in word:
        of_last = {option.rpartition(".")[2]: option for option in reversed(options)}
        of_last |= {name: option for name, option in OTHER_NAMES.items() if option in options}
        of_last |= {option: option for option in options if "." not in option}
        last = near(word, of_last)
        return of_last[last] if last else None
    group, _, last = word.rpartition(".")
    inside = {option.rpartition(".")[2]: option for option in options if option.rpartition(".")[0] == group}
    found = near(last, inside)
    return inside[found] if found else near(word, options)
