"""Classes of a network's own that are treated as their base: their forward stays, its functions run in NumPy."""

from typing import Any

from torch import nn

from cnn_lightning.layers import catalog
from cnn_lightning.layers.base import Layer
from cnn_lightning.swap.functional import InNumPy
from cnn_lightning.swap.native import NATIVE, layer_base


class AsBase(Layer):
    """The first base of the class that `as_base` makes of a network's own.

    Such a class may pad before a convolution, or call an activation after a norm, so its forward runs as it is: only
    the functions of torch in it that a NumPy layer computes (``F.conv2d``, ``F.layer_norm``) run in NumPy. A layer that
    has layers of its own leaves the functions to them, except those of its base.
    """

    _functions_of_base: frozenset[str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the network's own class."""
        with InNumPy(self._functions_of_base if self._modules else None):
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """By the network's own class: no file can name one that is made when it is needed."""
        reduced: Any = super().__reduce_ex__(protocol)
        _, (kind, *arguments), *others = reduced
        return _blank, (NATIVE[kind], *arguments), *others


_made: dict[type[nn.Module], type[nn.Module]] = {}


def as_base(own: type[nn.Module]) -> type[nn.Module]:
    """The class that objects of ``own`` get to run its functions in NumPy."""
    if own in _made:
        return _made[own]
    base = layer_base(own)
    functions = frozenset(() if base is None else catalog.entries()[base].functions)
    members = {"__module__": __name__, "__doc__": own.__doc__, "_functions_of_base": functions}
    metaclass: Any = type(own)
    made: type[nn.Module] = metaclass(own.__name__, (AsBase, own), members)
    NATIVE[made] = own
    return _made.setdefault(own, made)


def _blank(own: type[nn.Module], *arguments: Any) -> nn.Module:
    """An object without attributes, which pickle and copy add."""
    kind = as_base(own)
    return kind.__new__(kind, *arguments)
