"""Attention: every option, both masks as booleans and as numbers, with and without a batch axis."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from cnn_lightning.layers.attention import MultiheadAttention
from tests.cases import Bad, Case, Make, Sample
from tests.trials import Draw, Target, Trial, one, rarely, trial

LENGTH, KEYS, BATCH, HEADS, FEATURES = 3, 4, 2, 2, 8
Shape = tuple[int, ...]


def options(**more: Any) -> dict[str, Any]:
    return {"embed_dim": FEATURES, "num_heads": HEADS, **more}


def inputs(*shapes: Shape, padding: Shape | None = None, mask: Shape | None = None, average: bool = True) -> Make:
    """Query, key and value, then the other arguments. Masks are numbers to add; ``tests/test_attention.py`` has others.

    The weights are always wanted, because without them the second output is None.
    """

    def make(generator: torch.Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        def drawn(shape: Shape | None) -> Tensor | None:
            return None if shape is None else torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        return (*map(drawn, shapes), drawn(padding), True, drawn(mask), average)

    return make


QKV = ((LENGTH, BATCH, FEATURES), (KEYS, BATCH, FEATURES), (KEYS, BATCH, FEATURES))
BATCH_FIRST = ((BATCH, LENGTH, FEATURES), (BATCH, KEYS, FEATURES), (BATCH, KEYS, FEATURES))
ALONE = ((LENGTH, FEATURES), (KEYS, FEATURES), (KEYS, FEATURES))
OTHER = ((LENGTH, BATCH, FEATURES), (KEYS, BATCH, 5), (KEYS, BATCH, 3))
PADDING, MASK, EACH_HEAD = (BATCH, KEYS), (LENGTH, KEYS), (BATCH * HEADS, LENGTH, KEYS)
MORE = {"add_bias_kv": True, "add_zero_attn": True}

BARE = options(bias=False)
SAMPLES = [
    Sample(options=options(), make=inputs(*QKV)),
    Sample(options=options(batch_first=True), make=inputs(*BATCH_FIRST, average=False)),
    Sample(options=BARE, make=inputs(*QKV, padding=PADDING)),
    Sample(options=BARE, make=inputs(*QKV, padding=PADDING, mask=EACH_HEAD)),
    Sample(options=BARE | {"kdim": 5, "vdim": 3}, make=inputs(*OTHER)),
    Sample(options=BARE | {"add_bias_kv": True}, make=inputs(*QKV, padding=PADDING)),
    Sample(options=BARE | {"add_zero_attn": True}, make=inputs(*QKV, mask=EACH_HEAD, average=False)),
    Sample(options=BARE | MORE, make=inputs(*ALONE, mask=MASK)),
    Sample(options=options(dropout=0.4), make=inputs(*QKV)),
    Sample(options=options(dropout=0.4), make=inputs(*QKV), train=False),
    Sample(options=options(dropout=1.0), make=inputs(*QKV)),
]


def bad(*shapes: Shape, more: dict[str, Any] | None = None, **masks: Any) -> Bad:
    return Bad(options(**(more or {})), make=inputs(*shapes, **masks))


def ones(*more: Any, dtype: torch.dtype = torch.float32) -> Bad:
    return Bad(options(), make=lambda generator, _: (*(torch.ones(shape, dtype=dtype) for shape in QKV), *more))


def attention(draw: Draw, case: Case) -> Trial:
    """Sizes from 1, weights of all heads or their mean; rarely sizes that do not match."""
    heads, width, batch = (draw(st.integers(1, 3)) for _ in range(3))
    length, keys = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    features = heads * width
    chosen: dict[str, Any] = {"embed_dim": features, "num_heads": rarely(draw, heads, heads + 1)}
    for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first"):
        chosen[name] = draw(st.booleans())
    chosen["dropout"] = one(draw, 0.0, 0.0, 0.5)
    kinds = features, features
    if draw(st.integers(0, 3)) == 0:
        chosen["kdim"], chosen["vdim"] = kinds = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shapes: list[tuple[int, ...]] = []
    for long, wide in zip((length, keys, rarely(draw, keys, keys + 1)), (features, *kinds), strict=True):
        size = rarely(draw, wide, wide + 1)
        shapes.append(
            (long, size) if not batch else (batch, long, size) if chosen["batch_first"] else (long, batch, size)
        )
    arguments = [Target("values", shape, needs=draw(st.booleans())) for shape in shapes[1:]]
    mask = one(draw, None, Target("values", (length, keys)), Target("values", (batch * heads, length, keys)))
    rest = (*arguments, None, True, mask, draw(st.booleans()))
    # torch draws the mask of a dropout in memory order, but computes the scores in its own.
    return trial(draw, case.native, chosen, shapes[0], arguments=rest, without=case.without)


CASES = [
    Case(
        MultiheadAttention,
        nn.MultiheadAttention,
        samples=SAMPLES,
        bad=[
            Bad(options(num_heads=3), make=inputs(*QKV)),
            Bad({"embed_dim": 0, "num_heads": 1}, make=inputs(*QKV)),
            bad((LENGTH, BATCH, 7), *QKV[1:]),
            bad(QKV[0], QKV[1], (5, BATCH, FEATURES)),
            bad(QKV[0], (KEYS, 3, FEATURES), (KEYS, 3, FEATURES)),
            bad(QKV[0], *ALONE[1:]),
            bad((FEATURES,), (FEATURES,), (FEATURES,)),
            bad(*OTHER, more={"kdim": 5}),
            bad(*QKV, mask=(LENGTH, 3)),
            bad(*QKV, mask=(3, *MASK)),
            bad(*QKV, mask=(KEYS,)),
            bad(*QKV, padding=(BATCH, 3)),
            bad(*QKV, padding=(KEYS,)),
            bad(*ALONE, padding=PADDING),
            ones(dtype=torch.float64),
            ones(dtype=torch.int64),
            ones(None, True, torch.ones(MASK).int()),
            ones(None, True, None, True, True),
        ],
        trial=attention,
        without="huge,special,infinite,special gradient",  # what overflows in one order of sums may not in another
        rounding="chain",
    )
]
