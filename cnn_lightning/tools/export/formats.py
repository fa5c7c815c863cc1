"""A network as the bytes of an ONNX file, or of an archive of ``torch.export``."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn

_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def missing_for_onnx() -> str:
    """The packages that ONNX needs and which of them are not there, in words; empty if all are."""
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
    if not missing:
        return ""
    wanted = f"expected the packages {', '.join(_ONNX_PACKAGES)}, {', '.join(missing)} not found"
    return f"{wanted}; pip install 'cnn-lightning[onnx]'"


def to_pt2(net: nn.Module, example: tuple[Any, ...], *, any_batch: bool = False, extra: Mapping[str, str]) -> bytes:
    """The program of ``torch.export``, with ``extra`` files by their names; with ``any_batch``, axis 0 has any length.

    Raises:
        Exception: Of any type, where the network can't be exported.
    """
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in example) if any_batch else None
    content = BytesIO()
    with _quiet():
        program = torch.export.export(net, example, dynamic_shapes=shapes)
        torch.export.save(program, content, extra_files=dict(extra))
    return content.getvalue()


def to_onnx(
    net: nn.Module,
    example: tuple[Tensor, ...],
    *,
    any_batch: bool = False,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    properties: Mapping[str, str],
) -> bytes:
    """The ONNX file, with the names of its ``inputs`` and ``outputs``, and ``properties`` as its metadata.

    Raises:
        Exception: Of any type, where the network can't be exported.
    """
    shapes = tuple({0: "batch"} for _ in example) if any_batch else None
    with _quiet():
        program = torch.onnx.export(
            net,
            example,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
            external_data=False,
        )
        assert program is not None
        program.model.metadata_props.update(properties)
        content: bytes = program.model_proto.SerializeToString()
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of torch's exporter, which uses functions that torch itself deprecates."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", kind)
        yield
