"""Both tiers, for tests that call operations directly: the formulas of `ops`, and the fast functions."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from cnn_lightning.ops.fast import chooser


def both_tiers(module: str, *files: str) -> Any:
    """A fixture that runs every test of ``module`` twice: its layers, and these files of operations, on each tier.

    Infinity and NaN are silent, as they are in layers.
    """

    @pytest.fixture(params=["formula", "fast"], scope="module", autouse=True)
    def tier(request: pytest.FixtureRequest) -> Iterator[str]:
        package = "cnn_lightning.ops" if request.param == "formula" else "cnn_lightning.ops.fast"
        fast = chooser.fast(request.param == "fast")
        with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"), fast:
            for file in files:
                patch.setattr(f"{module}.{file}", import_module(f"{package}.{file}"))
            yield request.param

    return tier
