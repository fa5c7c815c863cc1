"""Image sets for the Trainer. The readers of files need no torch; the DataModules are loaded when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn_lightning.data.cifar10 import CIFAR10 as CIFAR10
    from cnn_lightning.data.digits import Digits as Digits
    from cnn_lightning.data.image_folder import ImageFolder as ImageFolder
    from cnn_lightning.data.mnist import MNIST as MNIST
    from cnn_lightning.data.mnist import FashionMNIST as FashionMNIST

_HOMES = {
    "Digits": "digits",
    "MNIST": "mnist",
    "FashionMNIST": "mnist",
    "CIFAR10": "cifar10",
    "ImageFolder": "image_folder",
}

__all__ = ["CIFAR10", "MNIST", "Digits", "FashionMNIST", "ImageFolder"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
