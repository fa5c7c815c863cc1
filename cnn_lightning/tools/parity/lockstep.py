"""Two implementations of one network side by side, layer by layer, and which of them is wrong where they differ.

Three copies take the same steps from equal weights on equal batches: torch's layers, the layers under test, and torch
in float64, which shows the error of the other two. Each layer's arguments and results are recorded: outputs, the
gradients of its inputs and parameters, its buffers, and the parameters after each step of the optimizer.

Where two results differ by more than the tolerance, that layer alone is computed again in float64, by torch and by the
implementation under test, from the inputs and upstream gradients that each of the two copies had. Where these two
agree, or the judge decides which is right (`judge`: torch has no priority), a copy that gave another result is at
fault. A copy that gave the right result only passes on an earlier difference: rounding, which may be amplified, or a
ReLU or max-pool whose inputs were so nearly equal that rounding decided.

The layers of this package are compared in a third way. Where a fast function replaces a formula, both compute each
recorded call again in float64 (`tiers`); so do chains and the formulas of their layers (`chains`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from cnn_lightning.layers import fused
from cnn_lightning.swap import Spec
from cnn_lightning.tools.parity.against import against
from cnn_lightning.tools.parity.candidates import Candidate, candidate_of
from cnn_lightning.tools.parity.layerwise.comparison import TOLERANCE, Comparison
from cnn_lightning.tools.parity.layerwise.results import Parity
from cnn_lightning.tools.parity.layerwise.runner import Batch, Runner, Tick, Training


@contextmanager
def _full_float32() -> Iterator[None]:
    """CuDNN's and cuBLAS' float32 without TF32, which has 10 of the 23 bits: its error, 3e-4, is no mistake."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    kept = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "benchmark_limit", "deterministic")}
    before = products.allow_tf32
    try:
        products.allow_tf32 = False
        with cudnn.flags(**kept, allow_tf32=False):
            yield
    finally:
        products.allow_tf32 = before


@_full_float32()
def compare(
    net: nn.Module,
    layers: Spec = "numpy",
    *,
    batches: Sequence[Batch],
    candidate: Candidate | str | None = None,
    loss: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    tolerance: float | None = None,
    lr: float = 0.01,
    momentum: float = 0.9,
    seed: int = 0,
    functions: Literal["torch", "numpy"] = "torch",
    tick: Tick = lambda what: None,
) -> Parity:
    """Train three copies of ``net``, a step on each batch, and compare everything.

    With a ``candidate``, it is compared with torch eager in place of the layers, and NumPy's layers run beside them as
    an independent third implementation. On a GPU, torch's float32 is compared in full precision, whatever its TF32
    switches are.

    Args:
        net: any network; it is not changed.
        layers: what runs the layers, as for `swap_layers`; the other copy runs torch's layers. The loss is ``loss``.
        batches: images and targets, on the device of ``net``.
        candidate: what to compare with torch eager, by a name such as ``"channels_last"`` (see `candidate_of`).
        loss: by default the cross entropy.
        dtype: of both implementations.
        tolerance: the relative error up to which results count as equal; see `TOLERANCE` for the default.
        lr: the learning rate of gradient descent. Its updates are linear in the gradients, so they don't amplify
            rounding.
        momentum: of gradient descent.
        seed: of the dropout masks, the same for all copies.
        functions: "numpy" if NumPy computes torch's own operators in the copy under test.
        tick: called with what was done, for a progress bar: once per batch and copy, and once at the end.

    Raises:
        ValueError: no batches, ``layers`` that `swap_layers` refuses, or an unknown ``candidate``.
    """
    if not batches:
        raise ValueError("batches: expected at least one, got none")
    loss = nn.CrossEntropyLoss() if loss is None else loss
    if candidate is not None:
        chosen = candidate_of(candidate, net) if isinstance(candidate, str) else candidate
        training = Training(batches, loss, dtype, tolerance, lr, momentum, seed, tick)
        return against(net, chosen, layers, training, functions=functions == "numpy")
    native = Runner(net, "torch", loss, dtype, lr, momentum)
    by_numpy = functions == "numpy"
    other = Runner(net, layers, loss, dtype, lr, momentum, functions=by_numpy)
    truth = Runner(net, "torch", loss, torch.float64, lr, momentum)
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    comparison = Comparison(native, other, truth, tolerance, batches[0][0].device)
    losses: list[dict[str, float]] = []

    def in_float64(*, watch: bool) -> Runner:
        runner = Runner(net, layers, loss, torch.float64, lr, momentum, watch=watch, functions=by_numpy)
        with fused.computed() as chains:
            runner.backward(batches[0], seed)
        names = {id(module): name for name, module in runner.named()}
        comparison.chains = comparison.chains or [[names[id(module)] for module in chain] for chain in chains]
        return runner

    for step, batch in enumerate(batches):
        values = {}
        for name, runner in (("torch", native), ("layers", other), ("float64", truth)):
            values[name] = runner.backward(batch, seed + step)
            tick(f"step {step + 1}: {name}")
        losses.append(values)
        comparison.step(step)
        unwatched = in_float64(watch=False) if step == 0 else None
        comparison.chained(step)
        if unwatched is not None:
            comparison.whole(unwatched, lambda: in_float64(watch=True))
        for runner in (native, other, truth):
            runner.update()
        comparison.updated(step)
    tick("done")
    ran = {name: tier for name, tier in comparison.tiers.names.items() if tier}
    kind = str(dtype).removeprefix("torch.")
    found = other.ran if by_numpy else None
    rows, shown = comparison.rows, comparison.evidence
    return Parity(
        rows, other.report, kind, comparison.tolerance, len(batches), losses, ran, found, evidence=list(shown)
    )
