"""Make the files of one folder of guards with the code of a checkout: ``PYTHONPATH=CHECKOUT python make.py FOLDER``.

It imports nothing of the tests, so that an older checkout can run it.
"""

import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

STOPPED_AT = 60
FIT = ["fit", "--model.channels", "[4,8]", "--model.hidden", "16", "--trainer.max_epochs", "3"]
FIT += ["--trainer.default_root_dir", "runs"]
COMMANDS = ["fit", "validate", "test", "predict", "parity", "benchmark", "compare", "explain", "check", "export"]


def apart(work: Callable[[], Any]) -> None:
    """Do it in a forked process: signals and global state of one piece don't reach the next."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except SystemExit:
            pass
        except BaseException as error:
            print(f"{work}: {error!r}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)


def stopped() -> None:
    """A run that SIGTERM stops inside its second epoch."""
    from cnn_lightning.classifier import Classifier
    from cnn_lightning.cli import main

    step, seen = Classifier.training_step, [0]

    def training_step(self: Any, *args: Any, **options: Any) -> Any:
        seen[0] += 1
        if seen[0] == STOPPED_AT:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **options)

    Classifier.training_step = training_step  # type: ignore[method-assign]  # the only way into any version's loop
    main(FIT)


def names() -> dict[str, str]:
    """Public names and their signatures."""
    import cnn_lightning

    found = {}
    for name in cnn_lightning.__all__:
        found[f"cnn_lightning.{name}"] = signature(getattr(cnn_lightning, name))
    layers = importlib.import_module("cnn_lightning.layers")
    for name in getattr(layers, "__all__", dir(layers)):
        if not name.startswith("_"):
            found[f"cnn_lightning.layers.{name}"] = signature(getattr(layers, name))
    ops = importlib.import_module("cnn_lightning.ops")
    for module in pkgutil.iter_modules(ops.__path__):
        if not module.name.startswith("_") and not module.ispkg:
            home = f"cnn_lightning.ops.{module.name}"
            for name, value in vars(importlib.import_module(home)).items():
                if inspect.isfunction(value) and value.__module__ == home and not name.startswith("_"):
                    found[f"{home}.{name}"] = signature(value)
    return found


def signature(value: Any) -> str:
    """Parameters, kinds and defaults, without annotations, which may be said in other words."""
    if not callable(value):
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:
        return ""
    return str(inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters]))


def text_of(args: list[str]) -> str:
    """What a command line prints."""
    from cnn_lightning.cli import main

    text = StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        main(args)
    return text.getvalue()


def write_texts(folder: Path) -> None:
    """Flags, names and the printed configuration."""
    flags = {name: sorted(set(re.findall(r"--[A-Za-z_][\w.]*", text_of([name, "--help"])))) for name in COMMANDS}
    (folder / "flags.json").write_text(json.dumps(flags, indent=0) + "\n")
    (folder / "names.json").write_text(json.dumps(names(), indent=0) + "\n")
    (folder / "print_config.yaml").write_text(text_of(["fit", "--print_config"]))


def checkpoints(under: Path) -> list[Path]:
    """Oldest first."""
    return sorted(under.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)


def export(ckpt: Path, folder: Path) -> None:
    """A program, and its logits for fixed pictures."""
    import numpy as np
    import torch

    from cnn_lightning.cli import main

    with suppress(SystemExit):
        main(["export", "--ckpt_path", str(ckpt), "--format", "pt2", "--output", str(folder / "net.pt2")])
    x = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    size = int(torch.load(ckpt, weights_only=False)["hyper_parameters"].get("image_size", 28))
    x = x[:, :, :size, :size]
    program = torch.export.load(folder / "net.pt2")
    with torch.no_grad():
        np.savez(folder / "logits.npz", x=x, logits=program.module()(torch.from_numpy(x)).numpy())


def main(folder: Path) -> None:
    """Each piece in its own process."""
    folder.mkdir(parents=True, exist_ok=True)
    import cnn_lightning.classifier
    import cnn_lightning.cli
    from cnn_lightning.plain import train_numpy

    print(cnn_lightning.__file__)
    apart(stopped)
    kept = checkpoints(Path("runs"))
    print(kept)
    last = next(path for path in kept if path.name == "last.ckpt")
    shutil.copy(last, folder / "stopped.ckpt")
    shutil.copy(next(Path("runs").rglob("config.yaml")), folder / "config.yaml")
    apart(lambda: write_texts(folder))
    apart(lambda: train_numpy.train(["--epochs", "1", "--batch_size", "512", "--save", str(folder / "weights.npz")]))
    apart(lambda: export(folder / "stopped.ckpt", folder))
    apart(lambda: cnn_lightning.cli.main([*FIT, "--ckpt_path", str(folder / "stopped.ckpt")]))
    final = checkpoints(Path("runs"))
    print(final)
    apart(lambda: kernel(next(path for path in reversed(final) if path.name == "last.ckpt"), folder))


def kernel(ckpt: Path, folder: Path) -> None:
    """The weights at the end, and the BLAS kernel that computed them."""
    import numpy as np
    import torch
    from threadpoolctl import threadpool_info

    state = torch.load(ckpt, weights_only=False)
    np.savez(folder / "final.npz", **{name: value.numpy() for name, value in state["state_dict"].items()})
    blas = [info.get("architecture") for info in threadpool_info() if info["user_api"] == "blas"]
    note = {"blas": blas, "cpu": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    note |= {"numpy": np.__version__, "global_step": state["global_step"]}
    (folder / "made_with.json").write_text(json.dumps(note) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
