"""How the tests run: one thread for each worker, and the same random examples every time."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: more threads than there are cores wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("the same every time", derandomize=True, deadline=None, database=None)
settings.load_profile("the same every time")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the tests to fail that say what another torch does."""
    from tests.other_torch import difference  # loads torch: after the lines above

    for item in items:
        reason = difference(item.nodeid)
        if reason:
            item.add_marker(pytest.mark.xfail(reason=f"this torch: {reason}", strict=False))


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
