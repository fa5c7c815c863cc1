"""``cnn-lightning parity``: run two implementations of a network in lock-step, and show each layer's largest error.

They are NumPy's layers and torch's. With ``--against``, they are another mode of torch, a program made from the
network, or a layer of your own; and torch eager, with NumPy's layers as the third.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cnn_lightning.errors import UserError
from cnn_lightning.files import PICTURES, expect_writable, written
from cnn_lightning.tools import parser as parsers
from cnn_lightning.tools.parity import arguments, page, reproducer
from cnn_lightning.tools.parity.candidates import Candidate, candidate_of
from cnn_lightning.tools.parity.layerwise.results import Parity
from cnn_lightning.tools.parity.lockstep import compare
from cnn_lightning.tools.parity.picture import draw
from cnn_lightning.tools.parity.report import as_json, summary
from cnn_lightning.tools.parity.subject import chosen_config, chosen_subject
from cnn_lightning.tools.parity.table import errors_table

_DTYPES = {"32": torch.float32, "64": torch.float64, "16": torch.float16, "bf16": torch.bfloat16}


def main(args: list[str]) -> int:
    """Compare and print; 0 if both agree, 1 if they don't, whichever side is wrong."""
    options = arguments.parser().parse_args(_repeatable(parsers.data_by_name(args)))
    parsers.expect_at_least_one(options, "steps", "data.batch_size")
    parsers.expect_seed(options.seed)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: expected a device of this machine, got cuda, which torch does not see here")
    expect_writable("--json", options.json)
    expect_writable("--html", options.html)
    expect_writable("--png", options.png, PICTURES)
    console = Console()
    torch.manual_seed(options.seed)
    config = chosen_config(options.config)
    by_default = "torch" if options.model.functions == "numpy" else config["model"].get("layers", "numpy")
    layers = options.model.layers or by_default
    subject = chosen_subject(options, config)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("building", total=None)
        try:
            candidate = None if options.against is None else candidate_of(options.against, subject.net)
            copies = 3 if candidate is None else 4 if candidate.kind == "mode" else 7
            progress.update(task, total=copies * len(subject.batches) + 1)
            found = compare(
                subject.net,
                layers,
                batches=subject.batches,
                candidate=candidate,
                loss=subject.loss,
                dtype=_DTYPES[options.precision],
                tolerance=options.tolerance,
                lr=options.lr,
                seed=options.seed,
                functions=options.model.functions,
                tick=lambda what: progress.update(task, description=what, advance=1),
            )
        except (ValueError, TypeError) as error:
            raise UserError(_by_option(str(error))) from error
    console.print(
        f"{subject.name}: largest relative errors {'of ' * bool(found.candidate)}{found.candidate}"
        f"{' ' * bool(found.candidate)}against torch, {found.dtype}, {found.steps} "
        f"step{'s' * (found.steps > 1)} on {subject.source}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(errors_table(found, console.width))
    for line in summary(found):
        console.print(line, highlight=False, soft_wrap=True)
    for line in _reproducers(found, candidate, Path(options.reproducers)):
        console.print(line, highlight=False, soft_wrap=True)
    if options.html:
        page.write(subject, found, options.html)
        console.print(f"html: {options.html}", highlight=False, soft_wrap=True)
    if options.json:
        with written("--json", options.json) as temporary:
            temporary.write_text(json.dumps(as_json(subject, found), indent=1))
        console.print(f"json: {options.json}", highlight=False, soft_wrap=True)
    if options.png:
        draw(subject, found, options.png)
        console.print(f"png: {options.png}", highlight=False, soft_wrap=True)
    return 0 if found.ok else 1


def _reproducers(found: Parity, candidate: Candidate | None, folder: Path) -> Iterator[str]:
    """Write a program for the first fault of each party; a line for each."""
    first = {each.party: each for each in reversed(found.evidence)}
    for party, evidence in first.items():
        name = re.sub(r"\W+", "_", str(evidence.row))
        path = folder / f"fault_{name}.py"
        try:
            reproducer.write(evidence, candidate, path)
        except reproducer.NoReproducer as reason:
            yield f"no reproducer for {evidence.row}: {reason}"
        else:
            yield f"reproducer: {path} (exits with 1 while {party} is wrong)"


def _by_option(error: str) -> str:
    """The message of `compare` with the name of the option in place of that of its argument."""
    options = {"layers": "--model.layers", "against": "--against"}
    name = error.partition(":")[0].partition(" ")[0]
    return options[name] + error.removeprefix(name) if name in options else error


def _repeatable(args: list[str]) -> list[str]:
    """``--config`` as an option that may be given more than once."""
    parts = [arg.partition("=") for arg in args]
    return [f"{'--config+' if flag in ('--config', '-c') else flag}{equals}{value}" for flag, equals, value in parts]
