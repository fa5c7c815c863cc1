"""The networks of the package timm, by names that begin with ``timm/``.

Only names that timm itself lists are built. timm's other sources, a folder or any repository of a hub, are no names
here, so that a checkpoint, which has the name of its network, can't choose a file to be read.
"""

import difflib
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

PREFIX = "timm/"
"""What the names begin with."""
SIZES = (32, 64, 96, 112, 128, 160, 192, 224, 256, 288, 320, 384)
"""Sizes to suggest: most networks with windows or patches take multiples of 32."""

WAIT = 5.0
"""Seconds to wait for the server of pretrained weights to answer at all."""


def resolved(name: str) -> str:
    """The name as timm lists it, without `PREFIX`; it may have upper case letters, and ``-`` for ``_``.

    Raises:
        ValueError: timm is not installed, or doesn't list the name.
    """
    timm = _timm(name)
    plain = name[len(PREFIX) :].lower().replace("-", "_")
    if plain in timm.list_models():
        return plain
    stem, _, tag = plain.partition(".")
    if tag and timm.is_model(stem):
        raise ValueError(f"net: expected '{PREFIX}{stem}', and weights '{tag}' as an option of its own, got {name!r}")
    close = difflib.get_close_matches(plain, timm.list_models(), 5, 0.5)
    close = close or timm.list_models(f"{plain[:4]}*")[:5] or ["resnet10t", "mobilenetv3_small_050"]
    listed = ", ".join(PREFIX + each for each in close)
    raise ValueError(f"net: unknown network {name!r}; close to it: {listed} ({len(timm.list_models())} in all)")


def build(
    name: str, num_classes: int, in_channels: int = 3, image_size: int | None = None, weights: str | None = None
) -> nn.Module:
    """A network in training mode.

    Args:
        name: As timm lists it, with `PREFIX`.
        num_classes: The number of outputs.
        in_channels: Channels of the images; timm adapts pretrained weights to it.
        image_size: Of the images; None for the size that the network is made for.
        weights: ``"DEFAULT"``, or the tag of pretrained weights, such as ``"a1_in1k"``; None for random ones.

    Raises:
        ValueError: An unknown name or tag, or images that the network does not take.
        OSError: The weights can't be fetched.
    """
    plain = resolved(name)
    tag = None if weights is None else _tag(plain, weights)
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    if image_size is not None:
        reason = _refusal(plain, in_channels, image_size)
        if reason:
            sizes = [size for size in _sizes(plain) if size >= image_size] or _sizes(plain)[-1:]
            fits = next((size for size in sizes if not _refusal(plain, in_channels, size)), sizes[-1])
            raise ValueError(f"image_size: expected {fits}, say, for {PREFIX}{plain}, got {image_size}: {reason}")
        options |= _size_option(plain, image_size)
    if tag is None:
        return _made(plain, **options)
    with _offline_if_unreachable() as unreachable:
        try:
            return _made(f"{plain}.{tag}" if tag else plain, pretrained=True, **options)
        except Exception as error:  # each library that downloads has errors of its own
            reason = f"{unreachable}, and they are not in the cache" if unreachable else " ".join(str(error).split())
            raise OSError(f"weights: those of {PREFIX}{plain} can't be fetched: {reason[:200]}") from error


@cache
def least_size(name: str) -> int:
    """The smallest of `SIZES` that the network takes, or else the size that it is made for."""
    plain = resolved(name)
    return next(size for size in _sizes(plain) if not _refusal(plain, 3, size) or size == _sizes(plain)[-1])


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError(
            f"net: {name!r} needs the package timm, which is not installed: pip install 'cnn-lightning[timm]'"
        ) from None
    return timm


def _config(plain: str) -> Any:
    return _timm(plain).get_pretrained_cfg(plain)


def _sizes(plain: str) -> list[int]:
    """The sizes to try, the network's own one last."""
    own = int(_config(plain).input_size[-1])
    return [*(size for size in SIZES if size < own), own]


def _size_option(plain: str, image_size: int) -> dict[str, int]:
    """The option for networks that are made for one size of images."""
    config = _config(plain)
    return {"img_size": image_size} if config.fixed_input_size and image_size != config.input_size[-1] else {}


@cache
def _refusal(plain: str, in_channels: int, image_size: int) -> str:
    """Why the network does not take a batch of two such images in training; empty if it does.

    Found on the meta device, which has no memory and computes no values.
    """
    try:
        with torch.device("meta"):
            net = _made(plain, in_chans=in_channels, **_size_option(plain, image_size))
            net(torch.empty(2, in_channels, image_size, image_size))
    except Exception as error:  # of any kind: each network has checks of its own, or none
        return " ".join(str(error).split())[:160] or type(error).__name__
    return ""


def _made(plain: str, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old names, and of weights that timm adapts
        net: nn.Module = _timm(plain).create_model(plain, **options)
    return net.train()


def _tag(plain: str, weights: str) -> str:
    """The tag of pretrained weights; empty for those that timm takes by default."""
    tags = [each.partition(".")[2] for each in _timm(plain).list_models(f"{plain}.*", pretrained=True)]
    if not tags:
        raise ValueError(f"weights: there are no pretrained ones for {PREFIX}{plain}, got {weights!r}")
    if weights == "DEFAULT":
        return ""
    if weights in tags:
        return weights
    raise ValueError(f"weights: expected one of DEFAULT, {', '.join(tags)} for {PREFIX}{plain}, got {weights!r}")


@contextmanager
def _offline_if_unreachable() -> Iterator[str]:
    """Let the hub's library look into its cache alone if its server can't be reached; it would try for a minute.

    Gives the reason; empty if the server answers, or if a proxy stands between.
    """
    from huggingface_hub import constants  # timm brings it along

    before, reason = constants.HF_HUB_OFFLINE, ""
    host = urlsplit(constants.ENDPOINT)
    if before:
        reason = "HF_HUB_OFFLINE is set"
    elif not getproxies():
        try:
            socket.create_connection((host.hostname or "", host.port or 443), WAIT).close()
        except OSError as error:
            reason = f"{host.hostname} can't be reached ({error.strerror or error})"
    constants.HF_HUB_OFFLINE = before or bool(reason)
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = before
