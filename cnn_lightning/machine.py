"""The machine that figures are true for."""

import platform
from importlib.metadata import version
from pathlib import Path


def machine(threads: int, device: str = "") -> str:
    """Processor (or the ``device`` that did the work), threads and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "lightning"))
    unit = f"{threads} thread{'s' * (threads > 1)}"
    return f"{device or _processor()}, {unit}, Python {platform.python_version()}, {versions}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
