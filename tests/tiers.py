"""Both tiers, for tests that call operations directly: the formulas of `ops`, and the fast functions."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from cnn_lightning.ops.fast import chooser


class Fast:
    """The functions of one file that run where fast is on: a formula without a fast function runs itself."""

    def __init__(self, file: str) -> None:
        self._modules = [import_module(f"cnn_lightning.{package}.{file}") for package in ("ops.fast", "ops")]

    def __getattr__(self, name: str) -> Any:
        return next(getattr(module, name) for module in self._modules if hasattr(module, name))


def both_tiers(module: str, *files: str) -> Any:
    """A fixture that runs every test of ``module`` twice: its layers, and these files of operations, on each tier.

    Infinity and NaN are silent, as they are in layers.
    """

    @pytest.fixture(params=["formula", "fast"], scope="module", autouse=True)
    def tier(request: pytest.FixtureRequest) -> Iterator[str]:
        fast = chooser.fast(request.param == "fast")
        with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"), fast:
            for file in files:
                formulas = import_module(f"cnn_lightning.ops.{file}")
                patch.setattr(f"{module}.{file}", formulas if request.param == "formula" else Fast(file))
            yield request.param

    return tier
