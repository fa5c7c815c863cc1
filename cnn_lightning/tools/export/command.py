"""``cnn-lightning export``: write a trained network as ONNX, for torch.export, or as one file of NumPy."""

from pathlib import Path
from typing import cast, get_args

from cnn_lightning.checkpoints import newest
from cnn_lightning.classifier import from_checkpoint
from cnn_lightning.errors import UserError
from cnn_lightning.files import expect_writable
from cnn_lightning.model import LARGEST
from cnn_lightning.tools.export import arguments
from cnn_lightning.tools.export.program import SUFFIXES, Format, Unequal, export
from cnn_lightning.train.run_folder import RUNS
from cnn_lightning.train.suggestions import did_you_mean


def main(args: list[str]) -> int:
    """Export, check the file, print its path; 1 if the check failed."""
    options = arguments.parser().parse_args(args)
    if options.format not in get_args(Format):
        known = get_args(Format)
        meant = did_you_mean(options.format, known)
        raise UserError(f"--format: expected one of {', '.join(known)}, got {options.format!r}{meant}")
    if not options.tolerance >= 0:
        raise UserError(f"--tolerance: expected a number of at least 0, got {options.tolerance}")
    kind = cast(Format, options.format)
    batch = _batch(str(options.batch))
    if kind == "numpy" and batch is not None:
        raise UserError(f"--batch: expected dynamic with --format numpy, which takes any number, got {batch}")
    checkpoint = newest(RUNS) if options.ckpt_path == "last" else Path(options.ckpt_path)
    path = checkpoint.with_suffix(SUFFIXES[kind]) if options.output is None else Path(options.output)
    expect_writable("--output", path, (SUFFIXES[kind],))
    model = from_checkpoint(checkpoint)
    try:
        found = export(model, path, kind, batch=batch, tolerance=options.tolerance)
    except Unequal as error:
        print(f"failed: {error}")
        return 1
    sizes = ", ".join(map(str, found.batches))
    print(
        f"checked: {found.by} gives the NumPy layers' logits up to {found.difference:.1e} of the largest "
        f"(batches of {sizes})"
    )
    print(f"file: {found.path}")
    return 0


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not (text.isdecimal() and 0 < int(text) <= LARGEST):
        raise UserError(f"--batch: expected dynamic or a whole number of at least 1, got {text!r}")
    return int(text)
