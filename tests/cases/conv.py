"""Convolutions."""

from typing import Any

import torch

from cnn_lightning.layers.conv import Conv1d, Conv2d, ConvTranspose2d
from tests.cases import Bad, Case, Make, Sample


def _options(c: int, o: int, k: Any, **more: Any) -> dict[str, Any]:
    return {"in_channels": c, "out_channels": o, "kernel_size": k, **more}


def _images(*shape: int, output_size: list[int]) -> Make:
    def make(generator: torch.Generator, dtype: torch.dtype) -> tuple[Any, ...]:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype), output_size

    return make


CASES = [
    Case(
        Conv2d,
        torch.nn.Conv2d,
        samples=[
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding=1)),
            Sample((2, 3, 7, 6), _options(3, 4, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(1, 2))),
            Sample((2, 4, 6, 5), _options(4, 6, 3, groups=2)),
            Sample((2, 4, 6, 5), _options(4, 8, 3, groups=4, padding=1, bias=False)),
            Sample((2, 5, 6, 5), _options(5, 3, 1)),
            Sample((2, 5, 9, 9), _options(5, 3, 1)),
            Sample((2, 5, 9, 9), _options(5, 3, 1, stride=2, padding=1)),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding="same")),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding="valid", dilation=2)),
            Sample((3, 6, 5), _options(3, 4, 3)),
            Sample((3, 6, 5), _options(3, 4, 3, padding=1, padding_mode="circular")),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding=2, padding_mode="reflect")),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding=(1, 4), padding_mode="reflect", bias=False)),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding=(7, 2), padding_mode="replicate", stride=2)),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding=(6, 1), padding_mode="circular")),
            Sample((2, 3, 6, 5), _options(3, 4, (4, 2), padding="same", padding_mode="circular")),
            Sample((2, 3, 6, 5), _options(3, 4, (4, 2), padding="same", padding_mode="reflect")),
            Sample((2, 3, 6, 5), _options(3, 4, 3, padding="valid", padding_mode="replicate")),
            Sample((2, 1, 3, 3), _options(1, 1, 3)),
            Sample((1, 3, 12, 4), _options(3, 4, 3, stride=4)),
        ],
        bad=[
            Bad(_options(4, 2, 3)),
            Bad(_options(3, 2, 9)),
            Bad(_options(3, 2, 3, dilation=4)),
            Bad(_options(3, 2, 3), (3, 8)),
            Bad(_options(3, 2, 3), (1, 2, 3, 8, 8)),
            Bad(_options(3, 2, 3, padding=1, padding_mode="reflect"), (3, 8)),
            Bad(_options(3, 2, 3, padding=8, padding_mode="reflect")),
            Bad(_options(3, 2, 3, padding=9, padding_mode="circular")),
            Bad(_options(3, 2, 3, padding=1, padding_mode="replicate"), (2, 3, 0, 8)),
            Bad(_options(3, 2, 3), dtype=torch.int64),
            Bad(_options(3, 2, 3), dtype=torch.bool),
            Bad(_options(3, 2, 3), dtype=torch.float64),
            Bad(_options(3, 2, 3), dtype=torch.float16),
            Bad(_options(3, 2, 3, dtype=torch.float64)),
            Bad(_options(3, 2, 3, padding=1, padding_mode="circular"), dtype=torch.int64),
            Bad(_options(3, 2, 3, stride=2, padding="same")),
            Bad(_options(3, 2, 3, padding="full")),
            Bad(_options(3, 2, 3, padding_mode="mirror")),
            Bad(_options(3, 2, 3, stride=0)),
            Bad(_options(3, 2, 3, dilation=0)),
            Bad(_options(3, 2, 3, padding=-1)),
            Bad(_options(3, 2, 3, stride=(1, 1, 1))),
            Bad(_options(3, 2, 3, groups=2)),
            Bad(_options(3, 2, 3, groups=0)),
            Bad(_options(-3, 2, 3)),
            Bad(_options(3, 2, 3), (2, 3, 0, 8)),
            Bad(_options(3, 2, 3), make=lambda generator, dtype: (torch.ones(2, 3, 8, 8).numpy(),)),
            Bad(_options(3, 2, 3), make=lambda generator, dtype: (None,)),
        ],
    ),
    Case(
        Conv1d,
        torch.nn.Conv1d,
        samples=[
            Sample((2, 3, 8), _options(3, 4, 3, padding=1)),
            Sample((2, 3, 9), _options(3, 4, 4, stride=2, padding=3, dilation=2)),
            Sample((2, 4, 8), _options(4, 6, 2, groups=2, bias=False)),
            Sample((2, 3, 8), _options(3, 4, 3, padding="valid")),
            Sample((3, 8), _options(3, 4, 3)),
            Sample((3, 8), _options(3, 4, 3, padding=7, padding_mode="reflect")),
            Sample((2, 3, 8), _options(3, 4, 4, padding="same", padding_mode="replicate")),
            Sample((2, 3, 8), _options(3, 4, 3, padding=8, padding_mode="circular", stride=3)),
            Sample((2, 3, 8), _options(3, 4, 1)),
        ],
        bad=[
            Bad(_options(4, 2, 3), (2, 3, 8)),
            Bad(_options(3, 2, 9), (2, 3, 8)),
            Bad(_options(3, 2, 3), (2, 3, 8, 8)),
            Bad(_options(3, 2, 3), (8,)),
            Bad(_options(3, 2, 3, padding=1, padding_mode="reflect"), (2, 3, 8, 8)),
            Bad(_options(3, 2, 3, padding=8, padding_mode="reflect"), (2, 3, 8)),
            Bad(_options(3, 2, 3), (2, 3, 8), torch.int32),
            Bad(_options(3, 2, 3), (2, 3, 8), torch.float64),
            Bad(_options(3, 2, 3, stride=0), (2, 3, 8)),
            Bad(_options(3, 2, 3, stride=2, padding="same"), (2, 3, 8)),
        ],
    ),
    Case(
        ConvTranspose2d,
        torch.nn.ConvTranspose2d,
        samples=[
            Sample((2, 3, 5, 4), _options(3, 4, 3, stride=2, padding=1, output_padding=1)),
            Sample((2, 3, 5, 4), _options(3, 4, 3)),
            Sample((2, 3, 5, 4), _options(3, 4, (2, 3), stride=(3, 1), padding=(1, 2), dilation=(1, 2))),
            Sample((2, 4, 5, 4), _options(4, 6, 3, stride=2, groups=2, bias=False)),
            Sample((2, 3, 5, 4), _options(3, 2, 2, dilation=3, output_padding=2)),
            Sample((2, 3, 5, 4), _options(3, 2, 3, stride=2, dilation=4, output_padding=3, padding=1)),
            Sample((2, 3, 5, 4), _options(3, 2, 3, stride=2, output_padding=(1, 0))),
            Sample((3, 5, 4), _options(3, 4, 3, stride=2)),
            Sample((2, 3, 5, 4), _options(3, 4, 1, stride=2)),
            Sample((2, 3, 5, 4), _options(3, 4, 1)),
            Sample((2, 3, 9, 9), _options(3, 4, 1)),
            Sample(options=_options(3, 4, 3, stride=2), make=_images(2, 3, 5, 4, output_size=[12, 10])),
            Sample(options=_options(3, 4, 3, stride=2), make=_images(2, 3, 5, 4, output_size=[2, 4, 11, 10])),
            Sample(options=_options(3, 4, 3, stride=2), make=_images(3, 5, 4, output_size=[12, 9])),
        ],
        bad=[
            Bad(_options(4, 2, 3)),
            Bad(_options(3, 2, 3), (3, 8)),
            Bad(_options(3, 2, 3), (1, 2, 3, 8, 8)),
            Bad(_options(3, 2, 3), dtype=torch.int64),
            Bad(_options(3, 2, 3), dtype=torch.float64),
            Bad(_options(3, 2, 3, output_padding=1)),
            Bad(_options(3, 2, 3, stride=2, output_padding=2)),
            Bad(_options(3, 2, 3, stride=2, output_padding=-1)),
            Bad(_options(3, 2, 3, padding=-1)),
            Bad(_options(3, 2, 3, padding=6)),
            Bad(_options(3, 2, 3, stride=0)),
            Bad(_options(3, 2, 3, groups=2)),
            Bad(_options(3, 2, 3, padding_mode="reflect")),
            Bad(_options(3, 2, 3, stride=2), make=_images(2, 3, 8, 8, output_size=[19, 18])),
            Bad(_options(3, 2, 3, stride=2), make=_images(2, 3, 8, 8, output_size=[2, 18, 18])),
            Bad(_options(3, 2, 3), (2, 3, 0, 8)),
        ],
    ),
]
