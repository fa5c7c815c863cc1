"""How programs are made from a network: compiled, exported and loaded again, or run by onnxruntime.

Each function makes a program from a module and an example of its arguments. The program uses the module's own
parameters and buffers; that of ONNX has copies, as it was when it was made.
"""

import inspect
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.tools.export.formats import missing_for_onnx, to_onnx, to_pt2
from cnn_lightning.train.suggestions import did_you_mean

Program = Callable[..., Any]
Backend = str | Callable[..., Any]

ONNX = (
    "import onnxruntime",
    "onnx = torch.onnx.export(layer, (x,), dynamo=True, verbose=False).model_proto.SerializeToString()",
    'session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])',
    "layer = lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])",
)
"""Lines of a program that run a module ``layer`` of one input ``x`` by onnxruntime."""

_ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters


def compiled(backend: Backend) -> Callable[[nn.Module, tuple[Any, ...]], Program]:
    """``torch.compile`` with a backend by its name, or one of the user's own.

    Raises:
        ValueError: An unknown name.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if isinstance(backend, str) and backend not in known:
        guess = did_you_mean(backend, known)
        wanted = "compile=inductor, aot_eager or another backend of torch.compile"
        raise ValueError(f"against: expected {wanted}, got compile={backend}{guess}")

    def build(module: nn.Module, arguments: tuple[Any, ...]) -> Program:
        # Of each class torch compiles a few modules and runs the others uncompiled, unless they are told apart.
        if not _ISOLATES:
            torch.compiler.reset()
        options: dict[str, Any] = {"isolate_recompiles": True} if _ISOLATES else {}
        return _quiet(torch.compile(module, backend=backend, **options))

    return build


def exported(module: nn.Module, arguments: tuple[Any, ...]) -> Program:
    """``torch.export``, saved and loaded again, for each shape of the arguments; it trains, if ``module`` does."""

    def load(arguments: tuple[Any, ...]) -> Program:
        content = BytesIO(to_pt2(module, arguments, extra={}))
        loaded = torch.export.load(content).module()
        for name, owner in module.named_modules(remove_duplicate=False):
            for kind in ("_parameters", "_buffers"):
                for key, value in getattr(owner, kind).items():
                    holder = _at(loaded, name)
                    if holder is not None and key in getattr(holder, kind):
                        getattr(holder, kind)[key] = value
        return loaded

    return _for_each_shape(load)


def run_by_onnx(module: nn.Module, arguments: tuple[Any, ...]) -> Program:
    """An ONNX file run by onnxruntime on the CPU, for each shape of the arguments."""

    def load(arguments: tuple[Any, ...]) -> Program:
        import onnxruntime

        content = to_onnx(module, arguments, properties={})
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]

        def run(*arguments: Any) -> Any:
            given = [value.detach().cpu().numpy() for value in arguments if isinstance(value, Tensor)]
            found = session.run(None, dict(zip(names, given, strict=True)))
            outputs = tuple(torch.from_numpy(value) for value in found)
            return outputs if len(outputs) > 1 else outputs[0]

        return run

    return _for_each_shape(load)


def expect_onnx() -> None:
    """Check that the packages of ONNX are there.

    Raises:
        ValueError: One is missing.
    """
    if missing := missing_for_onnx():
        raise ValueError(f"against onnx: {missing}")


def _for_each_shape(load: Callable[[tuple[Any, ...]], Program]) -> Program:
    loaded: dict[Any, Program] = {}

    def run(*arguments: Any) -> Any:
        shapes = tuple(value.shape if isinstance(value, Tensor) else repr(value) for value in arguments)
        if shapes not in loaded:
            loaded[shapes] = load(arguments)
        return loaded[shapes](*arguments)

    return run


def _at(net: nn.Module, name: str) -> nn.Module | None:
    """The module of that name; an export leaves out what holds no parameter."""
    return dict(net.named_modules()).get(name)


def _quiet(program: Program) -> Program:
    """Without the warnings of torch's compiler, which is run by the first call."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return program(*arguments, **keywords)

    return run
