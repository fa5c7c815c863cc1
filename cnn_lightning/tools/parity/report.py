"""What parity prints below its table, and what it writes as JSON."""

import math
from dataclasses import asdict
from typing import Any

from cnn_lightning.tools.parity.layerwise.results import Parity, Row
from cnn_lightning.tools.parity.subject import Subject


def summary(found: Parity) -> list[str]:
    """The lines: losses, flips, tiers, and the verdict with the first fault."""
    lines = []
    for step, losses in enumerate(found.losses, 1):
        lines.append(f"loss of step {step}: " + ", ".join(f"{name} {value:.9g}" for name, value in losses.items()))
    if found.flips:
        lines.append(
            f"rounding changed the sign at a ReLU or the choice of a max-pooling {found.flips} "
            f"time{'s' * (found.flips > 1)}, at nearly equal inputs; later differences follow from this: no fault"
        )
    lines += [found.note] if found.note else []
    lines += _tiers(found)
    lines += [str(found.functions)] if found.functions is not None else []
    first = found.first
    if first is None:
        close = [row for row in found.rows if row.error <= found.tolerance]
        line = f"parity: equal; {len(close)} of {len(found.rows)} comparisons are within {found.tolerance:.0e}"
        if close:
            worst = max(close, key=lambda row: row.error)
            line += f"; the largest error of these is {worst.error:.1e} ({worst}, step {worst.step + 1})"
        if len(close) < len(found.rows):
            line += (
                "; in the others each layer gives torch's result for its inputs, which differ by rounding"
                f"{' and the changed choices' * bool(found.flips)}"
            )
        lines.append(line)
    else:
        lines.append(
            f"parity: DIFFERENT, first in step {first.step + 1}, layer {first}: relative error {first.error:.1e} at "
            f"{list(first.where)}; {_blamed(first, found.candidate)}"
        )
        others = {row.verdict: row for row in reversed(found.faults) if row.verdict != first.verdict}
        lines += [
            f"parity: also in step {row.step + 1}, layer {row}: {_blamed(row, found.candidate)}"
            for row in others.values()
        ]
    return lines


def _tiers(found: Parity) -> list[str]:
    """A line for each tier, with the NumPy layers of this package that it ran."""
    names: dict[str, list[str]] = {}
    for row in found.layers.rows:
        if row.tier and row.name in found.tiers:
            names.setdefault(found.tiers[row.name], []).append(row.name)
    return [
        f"{tier}: {'all NumPy layers' if len(names) == 1 else ' '.join(members)}" for tier, members in names.items()
    ]


def _blamed(row: Row, candidate: str) -> str:
    """Which side is at fault, and how that was judged."""
    who = candidate or "this layer"
    errors = [("torch", row.native), (who, row.other)]
    errors += [("NumPy", row.numpy)] if candidate else []
    far = [f"{party} {off:.1e}" for party, off in errors if not math.isnan(off)]
    if row.of.endswith("chain") or (row.of and row.tier == "fast" and row.error == row.tiers):
        far = [f"the formula {row.native:.1e}", f"the fast code {row.other:.1e}"]
    error = f"; error against the right value: {', '.join(far)}" if far else ""
    judged = f" ({row.why})" if row.why else ""
    blame = {
        "fault": f"{who} is wrong{_of(row)}",
        "fault of torch": f"TORCH IS WRONG here, not {who}: {row.runs}",
        "both at fault": f"torch and {who} are BOTH WRONG",
        "fault of NumPy": f"NUMPY IS WRONG here{_of(row)}",
        "undecided": "one of the two is wrong, UNDECIDED which",
    }[row.verdict]
    return f"{blame}{judged}{error}"


def _of(row: Row) -> str:
    """Which tier of a layer is wrong."""
    if row.of == "chain":
        return ": the chain differs from the formulas of its layers"
    if row.of == "formula" and row.tier != "fast":
        return f": its formula, which is what runs {row.tier}"
    return {
        "": "",
        "fast function": ": its fast function, which differs from its formula",
        "formula": ": its formula; the fast code that runs instead is right",
    }.get(row.of, f": its {row.of}, which differ")


def as_json(subject: Subject, found: Parity) -> dict[str, Any]:
    """Every comparison; numbers that are not finite are strings."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    first = found.first
    return {
        "net": subject.name,
        "data": subject.source,
        "candidate": found.candidate,
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
