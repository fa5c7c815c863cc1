"""The memory that training steps take, each implementation in a process of its own.

``python -m cnn_lightning.tools.benchmark.memory`` is that process.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import torch

from cnn_lightning.ops.fast import blocks
from cnn_lightning.tools.benchmark.steps import Contender, Setting
from cnn_lightning.tools.benchmark.timing import threads


def measure_memory(setting: Setting, implementations: Sequence[str]) -> dict[str, int]:
    """Peak memory in bytes of five training steps, without that of the imports; each in its own process."""

    def peak(name: str) -> int:
        text = json.dumps({"implementation": name, "setting": asdict(setting)})
        done = subprocess.run(
            [sys.executable, "-m", "cnn_lightning.tools.benchmark.memory", text],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout.split()[-1])

    with ThreadPoolExecutor(blocks.cores()) as pool:
        return dict(zip(implementations, pool.map(peak, implementations), strict=True))


def _peak_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _memory_of_steps(implementation: str, setting: Setting) -> int:
    with threads(setting.threads):
        cuda = setting.is_cuda
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with open("/proc/self/clear_refs", "w") as refs:
                refs.write("5")  # reset the peak: that of the imports would hide that of the steps
        before = 0 if cuda else _peak_bytes()
        contender = Contender.make(implementation, setting)
        for _ in range(5):
            contender.step()
        return torch.cuda.max_memory_allocated() if cuda else _peak_bytes() - before


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    order["setting"]["channels"] = tuple(order["setting"]["channels"])
    print(_memory_of_steps(order["implementation"], Setting(**order["setting"])))
