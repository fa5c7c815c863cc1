"""The README as a program: every block runs, in its order, in one folder, offline; the target of every link exists."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cnn_lightning import check_layer, cli, layers, swap_layers
from cnn_lightning.layers import catalog
from tests.stand_ins import write_idx_set, write_pictures

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@dataclass(frozen=True)
class Block:
    """A block of code: the text between two fences."""

    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The command lines of a shell block, continued ones as one, comments kept."""
        joined = self.text.replace("\\\n", " ")
        return [part for line in joined.splitlines() if line.strip() for part in re.split(r" && ", line)]

    @property
    def file(self) -> str | None:
        """The file that a Python block is to be saved as: its first line says so."""
        found = re.match(r"# (\w+\.py)\n", self.text)
        return found[1] if found else None

    @property
    def excerpt_of(self) -> str | None:
        """The file of the checkout that a Python block shows a few lines of: its first line says so."""
        found = re.match(r"# (\w+/[\w/]+\.py)\n", self.text)
        return found[1] if found else None


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)]

LEFT_OUT = {
    r"pip install ": "it would change the very installation that the tests run in; its extras are looked up instead",
    r"pytest$": "it is what runs this",
    r"(ruff|mypy)\b": "CI runs them beside these tests",
    r"python -m tests.prove": "it writes into the checkout that the tests run in",
    r"cnn-lightning learn 1 --train": "it trains ten epochs; tests/test_learn.py runs it",
    r"cnn-lightning sweep": "it trains for minutes; tests/test_sweep.py runs it on little",
    r"cnn-lightning (benchmark|compare)": "it measures for minutes; tests of its own run it on little",
}
"""Commands that don't run, and why."""

PARSED = {
    r"cnn-lightning fit --config ddp": "it starts processes, which tests/test_cli.py waits for",
    r"cnn-lightning .*--config gpu": "it needs GPUs",
    r"cnn-lightning fit --trainer.logger \w+Logger": "it needs a package; tests/test_loggers.py runs each",
    r"cnn-lightning fit --model.compile true": "torch's compiler takes a minute",
    r"(torchrun|srun) .*--config gpu": "it needs several machines with GPUs",
}
"""Commands of which only the flags are read (by ``--print_config``), and why."""

OURS = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
"""The Python of these tests under the name ``python``."""

SHORTER = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4", "--trainer.enable_progress_bar", "false"]
"""Flags of every ``fit`` outside the slow test, to save time."""


def is_in(table: dict[str, str], command: str) -> bool:
    return any(re.match(pattern, command) for pattern in table)


def exit_code(command: str) -> int:
    """Checks what the comment after a command says of it."""
    return 1 if re.search(r"\s# fails\b", command) else 0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder but for small stand-ins in place of data that the reader has or downloads."""
    write_idx_set(tmp_path / "data", "MNIST")
    write_pictures(tmp_path / "pictures")
    write_pictures(tmp_path, ("unlabelled",), n=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def execute(block: Block) -> None:
    if block.file:
        Path(block.file).write_text(block.text)
    exec(compile(block.text, block.file or "README.md", "exec"), {"__name__": "readme"})


def test_every_block_is_of_a_kind_that_is_run_or_shown() -> None:
    assert {block.language for block in BLOCKS} == {"bash", "python", "yaml", "text"}
    assert README.count("```") == 2 * len(BLOCKS)


def test_excerpts_are_lines_of_their_files() -> None:
    excerpts = [block for block in BLOCKS if block.excerpt_of]
    assert excerpts
    for block in excerpts:
        first, _, lines = block.text.partition("\n")
        assert lines in (ROOT / first.removeprefix("# ")).read_text(), first


def test_the_table_of_layers_is_the_list_of_layers() -> None:
    """Each layer of the catalogue is in the row of its formulas; ``Conv1d/2d`` stands for two."""
    rows = {}
    for cells in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", README, re.MULTILINE):
        for word in cells[0].split(", "):
            for ending in re.findall(r"\dd", word) or [""]:
                rows[re.sub(r"\dd.*", "", word) + ending] = cells[1]
    for entry in catalog.entries().values():
        name = entry.layer.__name__
        assert f"ops/{entry.formulas}.py" in rows[name] if entry.formulas else rows[name], name


def test_every_block_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = ""
    for block in BLOCKS:
        if block.language == "python" and not block.excerpt_of:
            execute(block)
        elif block.language == "bash":
            shown = ""
            for command in block.commands:
                if is_in(LEFT_OUT, command):
                    continue
                words = shlex.split(command, comments=True)
                if is_in(PARSED, command):
                    at = next(i for i, word in enumerate(words) if re.fullmatch(r"cnn[-_]lightning", word))
                    code = cli.main([*words[at + 1 :], "--print_config"])
                elif words[0] == "cnn-lightning":
                    code = cli.main(words[1:] + (SHORTER if words[1] == "fit" else []))
                else:
                    code = subprocess.run(["bash", "-c", command], timeout=100, check=False, env=OURS).returncode
                out, err = capsys.readouterr()
                assert code == exit_code(command), f"{command}\n{out}\n{err}"
                shown += out
        elif block.language == "text":
            for line in block.text.splitlines():
                if line.startswith(("gradient:", "  where:", "  mend:")):
                    assert line.removesuffix("[...]") in shown


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_block_runs_word_for_word(folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for block in BLOCKS:
        if block.language == "python" and not block.excerpt_of:
            if block.file:
                Path(block.file).write_text(block.text)
            commands = [shlex.join([sys.executable, "-c", block.text])]
        else:
            commands = block.commands if block.language == "bash" else []
        for command in commands:
            if is_in(LEFT_OUT, command) or "--config gpu" in command:
                continue
            done = subprocess.run(
                ["bash", "-c", command], env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == exit_code(command), f"{command}\n{done.stdout}\n{done.stderr}"


def test_what_is_left_out_is_there_and_is_left_out_for_its_reason() -> None:
    commands = [command for block in BLOCKS if block.language == "bash" for command in block.commands]
    for pattern in LEFT_OUT | PARSED:
        assert any(re.match(pattern, command) for command in commands), pattern
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"'(?:\.|cnn-lightning)\[(\w+)\]'", README))
    assert named
    assert named <= set(extras)


def test_yaml_blocks_are_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [block for block in BLOCKS if block.language == "yaml"]
    assert blocks
    for block in blocks:
        Path("mine.yaml").write_text(block.text)
        assert cli.main(["fit", "--config", "mine.yaml", "--print_config"]) == 0
        read = yaml.safe_load(capsys.readouterr().out)["model"]
        assert yaml.safe_load(block.text)["model"].items() <= read.items()


def test_the_tree_has_every_folder_of_the_package() -> None:
    (tree,) = (block.text for block in BLOCKS if block.text.startswith("cli.py "))
    folders = {f"{path.parent.name}/" for path in (ROOT / "cnn_lightning").glob("*/__init__.py")}
    assert folders <= set(tree.split())


# ---- the layer of the README works as the built-in layers do


@pytest.fixture
def my_relu(folder: Path) -> Any:
    block = next(block for block in BLOCKS if block.file == "my_layers.py")
    (folder / "my_layers.py").write_text(block.text)
    import my_layers  # type: ignore[import-not-found]

    return my_layers.MyReLU


def test_the_readmes_layer_passes_every_rule(my_relu: Any) -> None:
    report = check_layer(my_relu(), torch.randn(2, 3, 8, 8), torch.nn.ReLU())
    assert report.verdict == "MyReLU passed 18 rules", report


def test_the_readmes_layer_swaps_compiles_and_trains_in_mixed_precision(my_relu: Any) -> None:
    torch.manual_seed(0)
    net: Any = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    x = torch.randn(3, 4)
    expected = net(x)
    assert swap_layers(net, {torch.nn.ReLU: my_relu}).swapped == ["1"]
    torch.testing.assert_close(net(x), expected)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    gradient = net[0].weight.grad.clone()
    net.zero_grad()
    net(x).sum().backward()
    torch.testing.assert_close(net[0].weight.grad, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert net[0].weight.grad.dtype == torch.float32
    swap_layers(net, "torch")
    assert type(net[1]) is torch.nn.ReLU


def test_the_command_line_finds_layers_in_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cnn-lightning", "--version"])
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert cli.main() == 0
    assert sys.path[-1] == ""


# ---- links, and the table of layers

LINKS = re.findall(r"\]\(([^)]+)\)", README)


@pytest.mark.parametrize("link", LINKS)
def test_the_target_of_a_link_exists(link: str) -> None:
    if link.startswith("http"):
        pytest.skip("a page of the internet")
    path, _, heading = link.partition("#")
    assert (ROOT / path).exists()
    headings = [re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in README.split("\n## ")]
    assert not heading or any(line.startswith(heading) for line in headings)


def rows() -> dict[str, list[str]]:
    """Each layer of the table -> the files in its row."""
    found = {}
    section = README.split("## Find the mathematics of a layer")[1].split("\n## ")[0]
    for names, files in re.findall(r"^\| ([A-Z][^|]+) \| (.+) \|$", section, re.MULTILINE):
        for name in names.split(", "):
            stem, *more = name.split("/")
            for spelling in [stem, *(re.sub(r"\dd$", other, stem) for other in more)]:
                found[spelling] = re.findall(r"\]\(([^)]+)\)", files)
    return found


@pytest.mark.parametrize("name", [name for name in layers.__all__ if name != "bridge"])
def test_a_layer_is_one_click_from_its_mathematics(name: str) -> None:
    assert name in rows(), f"README.md: expected {name} in the table of layers"
    file = ROOT / rows()[name][0]
    face = sys.modules[getattr(layers, name).__module__].__file__
    assert face is not None
    if file.parent.name == "layers":
        assert file.samefile(face)
    else:
        called = set(re.findall(rf"\b{file.stem}\.(\w+)", Path(face).read_text()))
        written = set(re.findall(r"^def (\w+)\(", file.read_text(), re.MULTILINE))
        assert {f"{forward}_backward" for forward in called & written} & called & written


def test_the_table_names_no_layer_that_is_not_there() -> None:
    assert set(rows()) <= set(layers.__all__)
