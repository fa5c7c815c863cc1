"""Mixup and cutmix: pictures of a batch are mixed in pairs, and their labels become probabilities."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from numpy.random import Generator
from torch import Tensor

from cnn_lightning.errors import UserError


class Mix(NamedTuple):
    """How the pictures of one batch are mixed.

    Args:
        share: Of the picture itself; the rest is its partner's.
        box: Left, top, right and bottom of the pixels that are the partner's; None if all pixels are mixed.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Mixing:
    """Mixes each picture with the one before it in the global batch, the first with the last.

    Mixup: ``share x + (1 - share) x_before`` (Zhang et al., https://arxiv.org/abs/1710.09412). Cutmix: a box of
    ``1 - share`` of the pixels, around a random one, is the other picture's (Yun et al.,
    https://arxiv.org/abs/1905.04899); pixels of the box outside the picture are cut off, and the share of the labels is
    that of the pixels. The share of a batch is drawn from Beta(alpha, alpha). With both one of them is drawn for each
    batch. The pairs are those of torchvision's ``MixUp`` and ``CutMix``.

    Args:
        mixup: The alpha of mixup; None for none.
        cutmix: The alpha of cutmix; None for none.

    Raises:
        UserError: An alpha that is not above 0.
    """

    mixup: float | None = None
    cutmix: float | None = None

    def __post_init__(self) -> None:
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if alpha is not None and not 0 < alpha < math.inf:
                raise UserError(f"data.{name}: expected a finite number above 0, or null, got {alpha}")

    def __bool__(self) -> bool:
        return self.mixup is not None or self.cutmix is not None

    def draw(self, random: Generator, height: int, width: int) -> Mix:
        """The mix of a batch of pictures of this size."""
        ways = [(alpha, cuts) for alpha, cuts in ((self.mixup, False), (self.cutmix, True)) if alpha is not None]
        alpha, cuts = ways[random.integers(len(ways))]
        share = random.beta(alpha, alpha)
        if not cuts:
            return Mix(share)
        x, y, half = int(random.integers(width)), int(random.integers(height)), 0.5 * math.sqrt(1 - share)
        across, down = int(half * width), int(half * height)
        left, top = max(0, x - across), max(0, y - down)
        right, bottom = min(width, x + across), min(height, y + down)
        return Mix(1 - (right - left) * (bottom - top) / (width * height), (left, top, right, bottom))


def mixed(images: Tensor, labels: Tensor, num_classes: int, mix: Mix) -> tuple[Tensor, Tensor]:
    """Pictures mixed with the one before each, and their probabilities of the classes.

    Args:
        images: float (N + 1, C, H, W), the partner of the first picture before it.
        labels: int64 (N + 1,).
        num_classes: Number of classes.
        mix: How.

    Returns:
        Images (N, C, H, W) and float32 probabilities (N, num_classes).
    """
    certain = torch.nn.functional.one_hot(labels, num_classes).float()
    probabilities = certain[:-1] * (1 - mix.share) + certain[1:] * mix.share
    if mix.box is None:
        return images[:-1] * (1 - mix.share) + images[1:] * mix.share, probabilities
    left, top, right, bottom = mix.box
    whole = images[1:].clone()
    whole[..., top:bottom, left:right] = images[:-1, :, top:bottom, left:right]
    return whole, probabilities
