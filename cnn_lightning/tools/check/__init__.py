"""Grades a layer of your own: `check_layer`.

The names below are loaded when they are first used, so that `cnn_lightning.tools.check.report` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn_lightning.tools.check.grading import check_layer as check_layer
    from cnn_lightning.tools.check.report import CheckReport as CheckReport
    from cnn_lightning.tools.check.report import Finding as Finding
    from cnn_lightning.tools.check.report import Grade as Grade

_HOMES = {"check_layer": "grading", "CheckReport": "report", "Finding": "report", "Grade": "report"}

__all__ = ["CheckReport", "Finding", "Grade", "check_layer"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
