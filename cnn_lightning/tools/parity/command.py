"""``cnn-lightning parity``: run a network in NumPy and in torch in lock-step, and show each layer's largest error."""

import inspect
import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from torch import nn

from cnn_lightning import data
from cnn_lightning.checkpoints import newest
from cnn_lightning.classifier import Classifier, from_checkpoint
from cnn_lightning.errors import UserError, one_line
from cnn_lightning.files import PICTURES, expect_writable, written
from cnn_lightning.model import build_net, least_image_size
from cnn_lightning.tools import parser as parsers
from cnn_lightning.tools.parity.lockstep import FAULTS, Batch, Parity, Row, compare
from cnn_lightning.train.configs import checked, config_file
from cnn_lightning.train.failures import readable
from cnn_lightning.train.run_folder import RUNS
from cnn_lightning.train.suggestions import did_you_mean

HELP = "prove that two implementations of a network agree, layer by layer, or name the layer and pass that is wrong"

_DTYPES = {"32": torch.float32, "64": torch.float64, "16": torch.float16, "bf16": torch.bfloat16}
_PASSES = {
    "output": "output",
    "input": "grad\ninput",
    "weights": "grad\nweight",
    "buffers": "buffer",
    "steps": "after\nstep",
}


@dataclass
class _Subject:
    """What is compared: a network, its loss, and a batch for each step."""

    name: str
    net: nn.Module
    loss: nn.Module
    batches: list[Batch]
    source: str


def _parser() -> ArgumentParser:
    parser = parsers.make("parity", __doc__)
    parser.add_argument(
        "--config", type=list[str], default=[], help="take model and data from a run's config, or several"
    )
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="take network and weights from a checkpoint")
    parser.add_argument("--model.net", type=str | None, default=None, help="simple_cnn or a torchvision model")
    parser.add_argument(
        "--model.layers",
        type=str | dict[str, str] | None,
        default=None,
        help="what is compared with torch: numpy (default) or patterns of layer names",
    )
    parser.add_argument("--model.channels", type=tuple[int, ...] | None, default=None, help="of SimpleCNN")
    parser.add_argument("--model.hidden", type=int | None, default=None, help="of SimpleCNN")
    parser.add_argument("--model.num_classes", type=int | None, default=None, help="of random data")
    parser.add_argument("--model.in_channels", type=int | None, default=None, help="of random data")
    parser.add_argument("--model.image_size", type=int | None, default=None, help="of random data")
    parser.add_argument("--data.name", type=str | None, default=None, help="--data NAME: a data set instead of noise")
    parser.add_argument("--data.root", type=str | None, default=None, help="where its files are")
    parser.add_argument("--data.batch_size", type=int, default=8, help="pictures in a batch")
    parser.add_argument("--steps", type=int, default=3, help="steps of the optimizer")
    parser.add_argument("--lr", type=float, default=0.01, help="of gradient descent with momentum 0.9")
    parser.add_argument("--precision", type=Literal["32", "64", "16", "bf16"], default="32", help="of both")
    parser.add_argument("--tolerance", type=float | None, default=None, help="relative error that needs no explanation")
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="where the tensors live")
    parser.add_argument("--seed", type=int, default=0, help="of weights, random data and dropout")
    parser.add_argument("--json", type=str | None, default=None, help="write every comparison to this file")
    parser.add_argument("--png", type=str | None, default=None, help="draw the errors of all layers into this file")
    return parser


def main(args: list[str]) -> int:
    """Compare and print; 0 if both agree, 1 if they don't, whichever is wrong."""
    options = _parser().parse_args(_repeatable(parsers.data_by_name(args)))
    parsers.expect_at_least_one(options, "steps", "data.batch_size")
    parsers.expect_seed(options.seed)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: expected a device of this machine, got cuda, which torch does not see here")
    expect_writable("--json", options.json)
    expect_writable("--png", options.png, PICTURES)
    console = Console()
    torch.manual_seed(options.seed)
    config = _config([str(config_file(name)) for name in options.config])
    layers = options.model.layers or config["model"].get("layers", "numpy")
    subject = _subject(options, config)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("building", total=3 * len(subject.batches) + 1)
        try:
            found = compare(
                subject.net,
                layers,
                batches=subject.batches,
                loss=subject.loss,
                dtype=_DTYPES[options.precision],
                tolerance=options.tolerance,
                lr=options.lr,
                seed=options.seed,
                tick=lambda what: progress.update(task, description=what, advance=1),
            )
        except (ValueError, TypeError) as error:
            raise UserError(f"--model.{error}" if str(error).startswith("layers: ") else str(error)) from error
    console.print(
        f"{subject.name}: largest relative errors against torch, {found.dtype}, {found.steps} "
        f"step{'s' * (found.steps > 1)} on {subject.source}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_table(found, console.width))
    for line in _summary(found):
        console.print(line, highlight=False, soft_wrap=True)
    if options.json:
        with written("--json", options.json) as temporary:
            temporary.write_text(json.dumps(_plain(subject, found), indent=1))
        console.print(f"json: {options.json}", highlight=False, soft_wrap=True)
    if options.png:
        _draw(subject, found, options.png)
        console.print(f"png: {options.png}", highlight=False, soft_wrap=True)
    return 0 if found.ok else 1


# ---- what is compared


def _repeatable(args: list[str]) -> list[str]:
    """``--config`` in the words of an option that is given more than once."""
    parts = [arg.partition("=") for arg in args]
    return [f"{'--config+' if flag in ('--config', '-c') else flag}{equals}{value}" for flag, equals, value in parts]


def _config(names: list[str]) -> dict[str, Any]:
    """The model and data of all configs; a later one wins."""
    merged: dict[str, Any] = {"model": {}, "data": None}
    for name in names:
        try:
            found = yaml.safe_load(Path(name).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"--config: {name} can't be read: {one_line(error)}") from error
        found = checked(found, name)
        merged["model"] |= found.get("model", {})
        merged["data"] = found.get("data", merged["data"])
    return merged


def _subject(options: Namespace, config: dict[str, Any]) -> _Subject:
    """The network and its data: what a checkpoint holds is so, else flags win over the config, and both over data."""
    stated = {key: value for key, value in vars(options.model).items() if value is not None and key != "layers"}
    classifier = None if options.ckpt_path is None else _checkpoint(options.ckpt_path)
    module, shape, source = _data(options, config["data"])
    if classifier is None:
        wanted = shape | {key: value for key, value in config["model"].items() if key in _BUILD} | stated
    else:
        wanted = {key: value for key, value in classifier.hparams.items() if key in _BUILD}
        for key, value in (shape | stated).items() if module is not None else stated.items():
            if value != wanted[key]:
                raise UserError(f"{key}: expected {wanted[key]!r}, that of the checkpoint, got {value!r}")
    try:
        name = wanted.setdefault("net", "simple_cnn")
        wanted.setdefault("num_classes", 10)
        wanted.setdefault("in_channels", 1 if name == "simple_cnn" else 3)
        if "image_size" not in wanted:
            wanted["image_size"] = 28 if name == "simple_cnn" else max(64, least_image_size(name))
        net = _build(wanted) if classifier is None else classifier.net
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise UserError(f"--model.{readable(error)}") from error
    try:
        batches = _noise(options, wanted) if module is None else _batches(module, options.steps)
    except RuntimeError as error:
        size = options.data.batch_size
        raise UserError(
            f"--data.batch_size: expected a batch that memory holds, got {size}: {readable(error)}"
        ) from error
    batches = [(images.to(options.device), labels.to(options.device)) for images, labels in batches]
    smoothing = config["model"].get("label_smoothing", 0.0)
    if not isinstance(smoothing, int | float):
        raise UserError(f"--config: expected a number in model.label_smoothing, got {smoothing!r}")
    loss = nn.CrossEntropyLoss(label_smoothing=smoothing) if classifier is None else classifier.loss
    return _Subject(name, net.to(options.device).train(), loss.to(options.device), batches, source)


_SHAPE = ("num_classes", "in_channels", "image_size")
_BUILD = ("net", *_SHAPE, "channels", "hidden", "weights")


def _build(wanted: dict[str, Any]) -> nn.Module:
    options = dict(wanted)
    return build_net(options.pop("net"), **options)


def _checkpoint(path: str) -> Classifier:
    if path == "last":
        path = str(newest(RUNS))
    return from_checkpoint(path)


def _data(options: Namespace, stated: Any) -> tuple[Any, dict[str, int], str]:
    """The data set, read, with its shape; None for random data, where only the config names a set that isn't here."""
    given = dict(stated.get("init_args") or {}) if isinstance(stated, dict) else {}
    name = stated.get("class_path") if isinstance(stated, dict) else stated
    asked = options.data.name is not None or options.data.root is not None
    if options.data.name is not None:
        name, given = options.data.name, {}
    if name is None:
        if asked:
            raise UserError(f"--data.root: expected it with --data NAME, got {options.data.root!r} alone")
        return None, {}, "random pictures"
    name = str(name).rpartition(".")[2]
    if name not in data.__all__:
        raise UserError(
            f"--data: expected one of {', '.join(data.__all__)}, got {name!r}{did_you_mean(name, data.__all__)}"
        )
    kind = getattr(data, name)
    given |= {"batch_size": options.data.batch_size, "seed": options.seed}
    if options.data.root is not None:
        given["root"] = options.data.root
    try:
        known = inspect.signature(kind).parameters
        module = kind(**{key: value for key, value in given.items() if key in known})
        module.prepare_data()
        module.setup("fit")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        if asked:
            raise UserError(f"--data {name}: {readable(error)}") from error
        shape = {key: given.get(key, getattr(kind, key, None)) for key in _SHAPE}
        known_shape = {key: value for key, value in shape.items() if isinstance(value, int)}
        return None, known_shape, f"random pictures ({name} is not here)"
    return module, {key: getattr(module, key) for key in _SHAPE}, name


def _batches(module: Any, steps: int) -> list[Batch]:
    found: list[Batch] = []
    while len(found) < steps:
        before = len(found)
        found += itertools.islice(module.train_dataloader(), steps - before)
        if len(found) == before:
            raise UserError("--data: expected at least one training batch, found none")
    return found


def _noise(options: Namespace, wanted: dict[str, Any]) -> list[Batch]:
    generator = torch.Generator().manual_seed(options.seed)
    n, size = options.data.batch_size, wanted["image_size"]
    return [
        (
            torch.randn(n, wanted["in_channels"], size, size, generator=generator),
            torch.randint(wanted["num_classes"], (n,), generator=generator),
        )
        for _ in range(options.steps)
    ]


# ---- what is shown


def _pass(row: Row) -> str:
    if row.what.startswith("output"):
        return "output"
    if row.what.startswith("gradient of input"):
        return "input"
    if row.what.startswith("gradient"):
        return "weights"
    return "buffers" if row.what.startswith("buffer") else "steps"


def _by_layer(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.layer, []).append(row)
    return found


def _worst(rows: Iterable[Row], passed: str) -> float | None:
    return max((row.error for row in rows if _pass(row) == passed), default=None)


def _largest(errors: Iterable[float]) -> float | None:
    return max((error for error in errors if not math.isnan(error)), default=None)


def _cell(error: float | None) -> str:
    return "" if error is None else "0" if error == 0 else f"{error:.0e}"


def _table(found: Parity, width: int) -> Table:
    """All layers; their names are folded where they would not leave the other columns their place."""
    runs = {row.name: row.implementation for row in found.layers.rows}
    layers = _by_layer(found.rows)
    cells = [
        (
            runs.get(name, ""),
            *(_cell(_worst(rows, passed)) for passed in _PASSES),
            _cell(_largest(row.native for row in rows)),
            _cell(_largest(row.other for row in rows)),
            _verdict(rows),
        )
        for name, rows in layers.items()
    ]
    headings = ("runs\nin", *_PASSES.values(), "torch\nto f64", "this\nto f64", "verdict")
    columns = list(zip(headings, *cells, strict=True))
    parts = [[line for text in column for line in text.splitlines()] for column in columns[:-1]]
    parts.append([word for text in columns[-1] for word in text.split()])  # a verdict may be folded, too
    taken = sum(1 + max(map(len, each)) for each in parts)
    table = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True, show_edge=False)
    table.add_column("layer", no_wrap=True)
    for heading in headings:
        number = heading not in (headings[0], headings[-1])
        table.add_column(heading, justify="right" if number else "left", no_wrap=number)
    for name, row in zip(layers, cells, strict=True):
        style = "bold red" if any(each.verdict in FAULTS for each in layers[name]) else ""
        table.add_row(_folded(name or "(itself)", width - taken), *row, style=style)
    return table


def _folded(name: str, width: int) -> str:
    """A dotted name in lines of at most ``width``, which end behind a dot, an underscore or a space where they can."""
    width = max(width, 8)
    lines = [""]
    for part in re.split(r"(?<=[._ ])", name):
        for piece in (part[start : start + width] for start in range(0, len(part), width)):
            if len(lines[-1] + piece) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(lines)


_SHOUTED = {"fault of torch": "fault OF TORCH", "both at fault": "BOTH at fault", "undecided": "UNDECIDED"}


def _verdict(rows: list[Row]) -> str:
    faults = {row.verdict: row.what for row in reversed(rows) if row.verdict in FAULTS}
    if faults:
        return "; ".join(f"{_SHOUTED.get(verdict, verdict)}: {what}" for verdict, what in reversed(faults.items()))
    flips = sum(row.flips for row in rows)
    verdicts = {row.verdict for row in rows}
    if "follows" in verdicts:
        return "follows"
    if flips:
        return f"{flips} flip{'s' * (flips > 1)}"
    return next((verdict for verdict in ("flip", "rounding") if verdict in verdicts), "equal").replace(
        "flip", "after a flip"
    )


def _summary(found: Parity) -> list[str]:
    lines = []
    for step, losses in enumerate(found.losses, 1):
        lines.append(f"loss of step {step}: " + ", ".join(f"{name} {value:.9g}" for name, value in losses.items()))
    if found.flips:
        lines.append(
            f"rounding flipped {found.flips} time{'s' * (found.flips > 1)} the sign at a ReLU or the choice of a "
            "max-pooling, nearly tied inputs; what differs after that follows from it and is no fault"
        )
    lines += _tiers(found)
    first = found.first
    if first is None:
        close = [row for row in found.rows if row.error <= found.tolerance]
        line = f"parity: equal; {len(close)} of {len(found.rows)} comparisons are within {found.tolerance:.0e}"
        if close:
            worst = max(close, key=lambda row: row.error)
            line += f", the largest error being {worst.error:.1e} ({worst}, step {worst.step + 1})"
        if len(close) < len(found.rows):
            line += (
                "; in the others each layer gives what torch gives for the same inputs, which rounding"
                f"{' and the flips' * bool(found.flips)} had changed"
            )
        lines.append(line)
    else:
        lines.append(
            f"parity: DIFFERENT, first in step {first.step + 1}, layer {first}: relative error {first.error:.1e} at "
            f"{list(first.where)}; {_blamed(first)}"
        )
        others = {row.verdict: row for row in reversed(found.faults) if row.verdict != first.verdict}
        lines += [f"parity: also in step {row.step + 1}, layer {row}: {_blamed(row)}" for row in others.values()]
    return lines


def _tiers(found: Parity) -> list[str]:
    """What ran each NumPy layer of this package: a line for each tier."""
    names: dict[str, list[str]] = {}
    for row in found.layers.rows:
        if row.tier and row.name in found.tiers:
            names.setdefault(found.tiers[row.name], []).append(row.name)
    return [
        f"{tier}: {'all NumPy layers' if len(names) == 1 else ' '.join(members)}" for tier, members in names.items()
    ]


def _blamed(row: Row) -> str:
    """Who is at fault, and how that was judged."""
    far = [
        f"{who} is {off:.1e} away"
        for who, off in (("torch", row.native), ("this layer", row.other))
        if not math.isnan(off)
    ]
    if row.of.endswith("chain") or (row.of and row.tier == "fast" and row.error == row.tiers):
        far = [f"the formula is {row.native:.1e} away", f"what stands in for it {row.other:.1e}"]
    from_right = f"; from the right value {' and '.join(far)}" if far else ""
    judged = f" ({row.why})" if row.why else ""
    blame = {
        "fault": f"this layer is wrong{_of(row)}",
        "fault of torch": f"TORCH IS WRONG here, not this layer: {row.runs}",
        "both at fault": "torch and this layer are BOTH WRONG",
        "undecided": "one of them is wrong, UNDECIDED which",
    }[row.verdict]
    return f"{blame}{judged}{from_right}"


def _of(row: Row) -> str:
    """Which tier of a layer is wrong."""
    if row.of == "chain":
        return ": the chain differs from the formulas of its layers"
    if row.of == "formula" and row.tier != "fast":
        return f": its formula, which runs itself {row.tier}"
    return {
        "": "",
        "fast function": ": its fast function, which differs from its formula",
        "formula": ": its formula, not what stands in for it and runs",
    }.get(row.of, f": its {row.of}, which differ")


def _plain(subject: _Subject, found: Parity) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    first = found.first
    return {
        "net": subject.name,
        "data": subject.source,
        "dtype": found.dtype,
        "tolerance": found.tolerance,
        "steps": found.steps,
        "equal": found.ok,
        "flips": found.flips,
        "fault": None if first is None else first.verdict,
        "first": None if first is None else {key: plain(value) for key, value in asdict(first).items()},
        "losses": [{key: plain(value) for key, value in losses.items()} for losses in found.losses],
        "layers": [asdict(row) | {"tier": found.tiers.get(row.name, "")} for row in found.layers.rows],
        "comparisons": [{key: plain(value) for key, value in asdict(row).items()} for row in found.rows],
    }


def _draw(subject: _Subject, found: Parity, path: str) -> None:
    from matplotlib.figure import Figure

    layers = _by_layer(found.rows)
    names = list(layers)
    least = float(torch.finfo(getattr(torch, found.dtype)).eps) / 1e3
    figure = Figure(figsize=(max(8.0, min(40.0, 0.22 * len(names) + 3)), 8), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    passes = (("forward", ("output", "buffers")), ("backward", ("input", "weights", "steps")))
    for axes, (title, kinds) in zip(panels, passes, strict=True):
        for label, field, marker in (
            ("torch to float64", "native", "o"),
            ("layers to float64", "other", "x"),
            ("layers to torch", "error", "_"),
        ):
            heights = [_largest(getattr(row, field) for row in rows if _pass(row) in kinds) for rows in layers.values()]
            shown = [math.nan if height is None else min(max(height, least), 1e3) for height in heights]
            axes.plot(range(len(names)), shown, marker, label=label)
        axes.axhline(found.tolerance, color="grey", linestyle="--", label="tolerance")
        axes.set_yscale("log")
        axes.set_ylabel(f"{title}: largest relative error")
        axes.grid(axis="y", alpha=0.3)
        faults = [index for index, rows in enumerate(layers.values()) if any(row.verdict in FAULTS for row in rows)]
        for index in faults:
            axes.axvspan(index - 0.5, index + 0.5, color="red", alpha=0.15)
    panels[0].legend(loc="upper left", ncols=4, fontsize="small")
    panels[0].set_title(
        f"{subject.name}, {found.dtype}, {found.steps} steps: " + ("equal" if found.ok else "different")
    )
    panels[1].set_xticks(range(len(names)), names, rotation=90, fontsize="x-small")
    with written("--png", path) as temporary:
        figure.savefig(temporary, dpi=100)
