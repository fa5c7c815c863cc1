"""Files of older versions still load, and their names and flags still exist.

``tests/guards/first`` was made by version 0.1, ``tests/guards/before`` by the last code without formulas;
``tests/guards/make.py`` made them. Where the BLAS kernel, torch's vector instructions and the libraries are those of
the note beside them, a resumed run gives the same bits; elsewhere sums round differently, and 1e-5 is asked for.
"""

import ast
import inspect
import json
import re
import warnings
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from threadpoolctl import threadpool_info

from cnn_lightning.cli import main
from cnn_lightning.plain import weights
from tests.guards.make import FIT, signature

GUARDS = Path(__file__).parent / "guards"
VERSIONS = ("first", "before")
"""Flags, names, the printed configuration and the plain program's weights are kept once: both have the same."""
LIMIT = 300_000
MOVED = {"cnn_lightning.ops.fused": "cnn_lightning.ops.fast.fused"}
"""Chains are no formulas: they live among the fast functions."""
QUIET = ["--trainer.enable_progress_bar", "false", "--pictures", "false"]


def read(version: str, name: str) -> Any:
    return json.loads((GUARDS / version / name).read_text(encoding="utf-8"))


def printed(args: list[str]) -> str:
    text = StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        main(args)
    return text.getvalue()


def as_noted(note: dict[str, Any]) -> bool:
    """Whether this process computes with the kernels and libraries of the note."""
    kernels = {info.get("architecture") for info in threadpool_info() if info["user_api"] == "blas"}
    here = (kernels, torch.backends.cpu.get_cpu_capability(), torch.__version__, np.__version__)
    return here == (set(note["blas"]), note["cpu"], note["torch"], note["numpy"])


def having(name: str) -> list[str]:
    return [version for version in VERSIONS if (GUARDS / version / name).exists()]


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in GUARDS.rglob("*") if path.suffix not in (".py", ".pyc")) <= LIMIT


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_stopped_inside_an_epoch_goes_on(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stopped = torch.load(GUARDS / version / "stopped.ckpt", weights_only=False)
    note = read(version, "made_with.json")
    assert 0 < stopped["global_step"] < note["global_step"]
    assert stopped["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] is False
    assert main([*FIT, *QUIET, "--ckpt_path", str(GUARDS / version / "stopped.ckpt")]) == 0
    last = max(Path("runs").rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    end = torch.load(last, weights_only=False)
    assert end["global_step"] == note["global_step"]
    if version == "first":
        return  # 0.1 promised less about the order of pictures: only the resume to the end is tested
    with np.load(GUARDS / version / "final.npz") as final:
        assert set(final) == set(end["state_dict"])
        for name, value in end["state_dict"].items():
            if as_noted(note):
                np.testing.assert_array_equal(value.numpy(), final[name], err_msg=name)
            else:
                np.testing.assert_allclose(value.numpy(), final[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_exported_program_gives_its_logits(version: str) -> None:
    import_module("cnn_lightning.layers")  # whose operators the program names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.export.load(GUARDS / version / "net.pt2").module()
    with np.load(GUARDS / version / "logits.npz") as kept, torch.no_grad():
        np.testing.assert_allclose(program(torch.from_numpy(kept["x"])).numpy(), kept["logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("version", having("weights.npz"))
def test_weights_of_the_plain_program_load(version: str) -> None:
    path = GUARDS / version / "weights.npz"
    with np.load(path) as kept:
        found = weights.load(path, {name: kept[name].shape for name in kept.files})
        assert found.keys() == set(kept.files)
        assert all(np.array_equal(found[name], kept[name]) for name in kept.files)


@pytest.mark.parametrize("version", having("flags.json"))
def test_every_flag_is_still_there(version: str) -> None:
    for command, flags in read(version, "flags.json").items():
        now = set(re.findall(r"--[A-Za-z_][\w.]*", printed([command, "--help", "all"])))
        assert flags
        assert set(flags) <= now, f"{command}: {set(flags) - now}"


def keys(config: Any, above: str = "") -> set[str]:
    if not isinstance(config, dict):
        return {above}
    return {above} | {key for name, value in config.items() for key in keys(value, f"{above}.{name}")}


@pytest.mark.parametrize("version", having("print_config.yaml"))
def test_the_printed_configuration_has_every_key(version: str) -> None:
    then = keys(yaml.safe_load((GUARDS / version / "print_config.yaml").read_text(encoding="utf-8")))
    assert len(then) > 20
    now = keys(yaml.safe_load(printed(["fit", "--print_config"])))
    assert then <= now, then - now


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_configuration_is_accepted(version: str) -> None:
    assert yaml.safe_load(printed(["fit", "--config", str(GUARDS / version / "config.yaml"), "--print_config"]))


def parameters(text: str) -> list[tuple[str, str, str]]:
    """Name, kind and default of each parameter of a signature; a formula may lack ``needs``."""
    arguments = ast.parse(f"def f{text}: ...").body[0].args  # type: ignore[attr-defined]  # a def, as written there
    places = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(places) - len(arguments.defaults)) + arguments.defaults
    found = [(a.arg, "place", ast.unparse(d) if d else "") for a, d in zip(places, defaults, strict=True)]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append((argument.arg, "name", ast.unparse(default) if default else ""))
    return [one for one in found if one[0] != "needs"]


@pytest.mark.parametrize("version", having("names.json"))
def test_names_keep_their_signatures(version: str) -> None:
    for name, then in read(version, "names.json").items():
        home, _, last = name.rpartition(".")
        value = getattr(import_module(MOVED.get(home, home)), last)
        if then and not inspect.ismodule(value) and "<" not in then:
            old, new = parameters(then), parameters(signature(value))
            assert new[: len(old)] == old, name
            assert all(default or kind == "name" for _, kind, default in new[len(old) :]), f"{name}: a new one is asked"
