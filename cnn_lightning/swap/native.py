"""The native type of each NumPy layer, and of a layer that was swapped."""

from torch import nn

from cnn_lightning.layers import attention, catalog, fused

LAYERS: dict[type[nn.Module], type[nn.Module]] = {native: entry.layer for native, entry in catalog.entries().items()}
"""From the native type of a layer to the NumPy layer."""

CONTAINERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: fused.Sequential,  # computes NumPy layers in chains
    nn.TransformerEncoder: attention.TransformerEncoder,
    nn.TransformerEncoderLayer: attention.TransformerEncoderLayer,
}
"""From the native type of a container to the one that is made for NumPy layers; no layers themselves."""

NATIVE: dict[type[nn.Module], type[nn.Module]] = {ours: native for native, ours in (LAYERS | CONTAINERS).items()}
REMEMBERED = "_swapped_from"
"""The attribute in which a layer of a user's own class keeps its native type, for the way back."""


def native_type(module: nn.Module) -> type[nn.Module]:
    """The native type that ``module`` has, or had before it was swapped."""
    kind = type(module)
    remembered: type[nn.Module] = module.__dict__.get(REMEMBERED, kind)
    return NATIVE.get(kind, remembered)


def layer_base(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The native type that a class is, or is a subclass of; None if there is no NumPy layer for any of its bases."""
    return next((base for base in kind.__mro__ if base in LAYERS), None)


def path_of(kind: type[nn.Module]) -> str:
    """The import path of a class; for one of `torch.nn` its bare name."""
    return kind.__name__ if kind.__module__.startswith("torch.nn.") else f"{kind.__module__}.{kind.__qualname__}"


def is_ours_type(kind: type[nn.Module]) -> bool:
    """Whether a class is a NumPy layer of this package, or a subclass of one."""
    return any(base in NATIVE for base in kind.__mro__)


def is_ours(module: nn.Module) -> bool:
    """Whether a layer runs in NumPy, by our class or by a class that `swap_layers` gave it."""
    return is_ours_type(type(module)) or REMEMBERED in module.__dict__


def formula_file(module: nn.Module) -> str:
    """The file of `cnn_lightning.ops` whose formulas a layer calls in NumPy; empty where it calls none."""
    native = native_type(module)
    base = layer_base(native) if type(module) in NATIVE else native
    return catalog.entries()[base].formulas if base in LAYERS else ""
