"""Memory formats: `batch_last`, networks in it, the option ``memory_format``, and what ``auto`` decides."""

import copy
import re
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch.utilities.compile
import pytest
import torch
from torch import Tensor, nn

import cnn_lightning.train.trainer
from cnn_lightning import batch_last, build_net, fast, swap_layers
from cnn_lightning.callbacks.resume import Resumable
from cnn_lightning.checkpoints import read_checkpoint
from cnn_lightning.classifier import Classifier, memory, module
from cnn_lightning.cli import main
from cnn_lightning.layers.memory import Memory
from cnn_lightning.model import heads
from cnn_lightning.tools.parity import command as parity
from cnn_lightning.tools.parity.lockstep import compare
from tests.processes import Run, noise, ranks
from tests.test_resume import differences, result

CPU = torch.device("cpu")


def pictures(n: int = 4, channels: int = 3, size: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)


def is_batch_last(x: Tensor) -> bool:
    return x.permute(1, 2, 3, 0).is_contiguous() and not x.is_contiguous()


# ---- the function


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64])
def test_batch_last_keeps_values_and_shape(dtype: torch.dtype) -> None:
    x = pictures(5, 3, 7).to(dtype)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x[:, :, ::2], x.transpose(2, 3)):
        y = batch_last(given)
        assert torch.equal(y, given)
        assert is_batch_last(y)
        assert batch_last(y) is y


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (0, 3, 4, 4), (4, 1, 1, 1)])
def test_nothing_is_copied_where_the_format_makes_no_difference(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    assert batch_last(x) is x


def test_gradients_pass_through_batch_last() -> None:
    x = pictures(2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(batch_last, x)
    assert torch.autograd.gradgradcheck(batch_last, x)


def test_batch_last_refuses_what_has_not_four_axes() -> None:
    with pytest.raises(RuntimeError, match=r"^batch_last: x: expected 4 axes \(N, C, H, W\), got shape \(2, 3\)$"):
        batch_last(torch.ones(2, 3))
    with pytest.raises(RuntimeError):
        torch.ones(2, 3).contiguous(memory_format=torch.channels_last)  # the same type
    with pytest.raises(TypeError, match=r"^batch_last: x: expected a tensor, got list$"):
        batch_last([1.0])  # type: ignore[arg-type]


def test_views_work_in_batch_last_except_those_that_merge_the_batch_with_channels() -> None:
    plain = pictures(4, 6, 5)
    x = batch_last(plain)
    n, c, h, w = x.shape
    for shape in ((n, -1), (n, 2, c // 2, h, w), (n, c, h * w)):
        y = x.view(shape)
        assert y.data_ptr() == x.data_ptr()
        assert torch.equal(y, plain.view(shape))
    assert x.flatten(1).data_ptr() == x.data_ptr()
    assert torch.equal(x.flatten(1), plain.flatten(1))
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        x.view(n * c, h, w)


def test_compilers_choose_the_strides() -> None:
    x = pictures()
    torch._dynamo.reset()
    compiled = torch.compile(batch_last, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), x)
    assert compiled(x).stride() == x.stride()

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return batch_last(x) * 2

    program = torch.export.export(Net(), (x,)).module()
    assert torch.equal(program(x), x * 2)


# ---- networks


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Logits of all heads, gradients and buffers of one step; without dropout, which draws masks in memory order."""
    net = copy.deepcopy(net)
    for layer in net.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    torch.manual_seed(0)
    logits = heads(net(x))
    torch.stack([head.square().sum() for head in logits]).sum().backward()
    return [*logits, *(each.grad for each in net.parameters() if each.grad is not None), *net.buffers()]


NETS = ["resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "efficientnet_b0", "convnext_tiny"]
NETS += ["googlenet", "squeezenet1_1"]
TIERS = [pytest.param(name, True, id=f"{name}-fast") for name in NETS]
TIERS += [pytest.param(name, False, id=f"{name}-formula", marks=pytest.mark.slow) for name in NETS]


@pytest.mark.parametrize(("name", "is_fast"), TIERS)
def test_networks_in_batch_last_equal_torch(name: str, is_fast: bool) -> None:
    torch.manual_seed(0)
    net = build_net(name, in_channels=3, image_size=32, num_classes=5).double()
    x = pictures(size=32)
    expected = gradients(net, x)
    swap_layers(net, "numpy")
    with fast(is_fast):
        found = gradients(net, batch_last(x))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-8 * b.abs().max().clamp(min=1)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU6(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).double()


@pytest.mark.parametrize("native", [{"0": "torch"}, {"[13]": "torch"}, {"[256]": "torch"}, {"[0-4]": "torch"}])
def test_native_layers_between_numpy_layers(native: dict[str, str]) -> None:
    net = small()
    expected = gradients(net, pictures())
    swap_layers(net, {**native, "*": "numpy"})
    for a, b in zip(gradients(net, batch_last(pictures())), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# ---- the option


def classifier(image_size: int = 8, **options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(**options, in_channels=3, image_size=image_size, num_classes=5, channels=(4, 6), hidden=8)


def strides_in(model: Classifier) -> Tensor:
    """The images as the network gets them."""
    seen: list[Tensor] = []
    handle = model.net.register_forward_pre_hook(lambda net, given: seen.append(given[0]))
    model(pictures(dtype=torch.float32))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("layers", ["numpy", "torch"])
def test_each_format_gives_the_same_logits(layers: str) -> None:
    x = pictures(dtype=torch.float32)
    expected = classifier(layers=layers, memory_format="contiguous")(x)
    for name in ("auto", "channels_last", "batch_last"):
        torch.testing.assert_close(classifier(layers=layers, memory_format=name)(x), expected)


def test_the_network_gets_its_images_in_the_format() -> None:
    assert strides_in(classifier(memory_format="contiguous")).is_contiguous()
    assert strides_in(classifier()).is_contiguous()  # auto before anything is decided
    assert is_batch_last(strides_in(classifier(memory_format="batch_last")))
    model = classifier(memory_format="channels_last")
    assert strides_in(model).is_contiguous(memory_format=torch.channels_last)
    assert model.net.conv2.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr,operator]


def test_checkpoints_do_not_keep_the_format() -> None:
    assert "memory_format" not in classifier(memory_format="batch_last").hparams


# ---- what auto decides


def decided(model: Classifier, device: torch.device = CPU) -> str:
    size = model.hparams["image_size"]
    return str(memory.chosen(model.net, device, (model.hparams["in_channels"], size, size), compiled=False))


@pytest.mark.parametrize("net", ["simple_cnn", "resnet18", "googlenet"])
def test_auto_is_batch_last_where_numpy_runs(net: str) -> None:
    assert decided(classifier(net=net, image_size=32)) == "memory: batch_last"


def test_auto_is_contiguous_where_nothing_is_gained() -> None:
    nothing = "memory: contiguous (no convolution, pooling or batch norm by fast functions)"
    assert decided(classifier(layers="torch")) == nothing
    assert decided(classifier(layers={"relu*": "numpy", "linear*": "numpy", "*": "torch"})) == nothing
    assert decided(classifier(layers={"conv1": "numpy", "*": "torch"})) == "memory: batch_last"
    with fast(False):
        assert decided(classifier()) == nothing
    assert decided(classifier(), torch.device("cuda")) == "memory: contiguous (on cuda)"


def test_auto_is_contiguous_under_a_compiler() -> None:
    compiled = classifier(compile=True)
    whole: Any = torch.compile(classifier())
    also: Any = lightning.pytorch.utilities.compile.from_compiled(whole)  # as the Trainer does
    for model in (compiled, also):
        model._trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=CPU))
        assert str(model.choose_memory()) == "memory: contiguous (compiled)"


class Merging(nn.Module):
    """Takes batch and channels together."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0] * x.shape[1], *x.shape[2:]).view(x.shape) * 2


class InMemoryOrder(nn.Module):
    """Takes the pixels in the order of the memory: of another picture, or another channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.as_strided(x.shape, torch.empty(x.shape).stride())


class InOneFormat(nn.Module):
    """Has a wrong gradient in batch-last alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale if x.is_contiguous() else x * (self.scale + self.scale.detach()) / 2


class Picky(nn.Module):
    """Takes one picture at a time."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            raise ValueError("one picture at a time")
        return x


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Merging, "fails in batch_last: view size is not compatible with input"),
        (InMemoryOrder, r"logits in batch_last differ by \de[+-]\d\d"),
        (InOneFormat, r"gradients in batch_last differ by \de[+-]\d\d"),
        (Picky, "a trial step fails: one picture at a time"),
    ],
)
def test_auto_is_contiguous_where_a_network_needs_it(layer: type[nn.Module], reason: str) -> None:
    model = classifier()
    model.net = nn.Sequential(layer(), *model.net.children())
    found = decided(model)
    assert len(found) <= 80
    assert re.fullmatch(rf"memory: contiguous \({reason}\)", found), found


def test_the_trial_leaves_no_trace() -> None:
    model = classifier(net="resnet18", image_size=32)
    calls: Counter[str] = Counter()

    class Counting:
        """A hook with a state, which a copy of the network would copy."""

        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

        def __call__(self, *_: Any) -> None:
            calls["a module"] += 1

    hook = Counting()
    for layer in model.net.modules():
        layer.register_forward_pre_hook(hook)
        layer.register_forward_hook(hook)
        layer.register_full_backward_hook(hook)
        layer.register_full_backward_pre_hook(hook)
    for weight in model.net.parameters():
        weight.register_hook(lambda gradient: calls.update(["a weight"]))
        weight.grad = torch.ones_like(weight)
    model.net.get_submodule("layer1").eval()
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    modes = [layer.training for layer in model.net.modules()]
    state = torch.get_rng_state()
    assert decided(model) == "memory: batch_last"
    assert not calls
    assert torch.equal(torch.get_rng_state(), state)
    assert [layer.training for layer in model.net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.net.state_dict().items())
    for weight in model.net.parameters():
        assert weight.dtype == torch.float32
        assert weight.grad is not None
        assert torch.equal(weight.grad, torch.ones_like(weight))


# ---- commands

FIT = ["fit", "--trainer.enable_progress_bar", "false", "--pictures", "false", "--data.batch_size", "256"]
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
RUN = Path("runs/digits/version_0")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The line of a fit about memory."""
    assert main([*FIT, *SHORT, *args]) == 0
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("memory: "))


def test_fit_says_the_memory_format(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert line(capsys) == "memory: batch_last"
    assert "memory_format: auto" in (RUN / "config.yaml").read_text()
    assert "memory_format" not in read_checkpoint(RUN / "checkpoints/last.ckpt")["hyper_parameters"]
    assert line(capsys, "--model.memory_format", "channels_last") == "memory: channels_last"
    assert line(capsys, "--model.fast", "false").startswith("memory: contiguous (no convolution")
    last = ["--ckpt_path", "last", "--model.memory_format"]
    assert main(["test", *last, "contiguous"]) == 0
    assert main(["predict", *last, "batch_last"]) == 0


def test_the_trial_is_made_once_for_a_fit_and_its_test(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(*args: Any, **options: Any) -> Memory:
        made.append(args)
        return memory.chosen(*args, **options)

    monkeypatch.setattr(module, "chosen", counted)
    assert line(capsys) == "memory: batch_last"
    assert len(made) == 1
    assert line(capsys, "--model.memory_format", "contiguous") == "memory: contiguous"
    assert len(made) == 1


@pytest.mark.parametrize("name", ["auto", "batch_last"])
def test_a_compiled_network_trains_in_either_format(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    x = pictures(dtype=torch.float32)
    model = classifier(memory_format=name)
    expected = gradients(classifier().net, x)
    model.net.compile(backend="eager", fullgraph=True)
    heads(model._outputs(x))[0].square().sum().backward()
    found = [weight.grad for weight in model.net.parameters()]
    for a, b in zip(found, expected[1:], strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


def test_a_classifier_in_batch_last_is_exported() -> None:
    model = classifier(memory_format="batch_last").eval()
    x = pictures(dtype=torch.float32)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    torch.testing.assert_close(program(x[:3]), model(x[:3]))


def every_step() -> None:
    """A checkpoint after every second step."""
    cnn_lightning.train.trainer.Resumable = partial(Resumable, every_n_steps=2)  # type: ignore


def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    flags = [*FIT, "--trainer.max_epochs", "3"]
    for args, folder in (
        (flags, whole),
        ([*flags, "--trainer.max_steps", "7"], stopped),
        ([*flags, "--ckpt_path", "last"], stopped),
    ):
        run = Run(args, folder, every_step)
        assert run.wait() == 0, run.text
        assert "memory: batch_last\n" in run.text
        assert noise(run.text) == []
    assert differences(result(whole), result(stopped)) == []


@pytest.mark.ddp
def test_processes_decide_together_and_equal_one(tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    flags = [*FIT[:-2], "--trainer.max_epochs", "1", "--trainer.precision", "64-true", "--data.batch_size"]
    runs = ranks(2, [*flags, "128"], together)
    runs.append(Run([*flags, "256", "--model.memory_format", "contiguous"], alone))
    for run in runs:
        assert run.wait() == 0, run.text
        assert noise(run.text) == []
    assert "memory: batch_last\n" in runs[0].text
    found, expected = (
        read_checkpoint(path / RUN / "checkpoints/last.ckpt")["state_dict"] for path in (together, alone)
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["batch_last", "channels_last"])
def test_parity_compares_in_a_memory_format(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def compared(net: nn.Module, layers: Any, *, batches: Any, **options: Any) -> Any:
        seen.extend(images for images, _ in batches)
        return compare(net, layers, batches=batches, **options)

    monkeypatch.setattr(parity, "compare", compared)
    assert main(["parity", "--model.memory_format", name, "--steps", "1", "--model.in_channels", "3"]) == 0
    Path("mine.yaml").write_text(f"model: {{memory_format: {name}, in_channels: 3}}\n")
    assert main(["parity", "--config", "mine.yaml", "--steps", "1"]) == 0
    assert len(seen) == 2
    for images in seen:
        assert is_batch_last(images) == (name == "batch_last")
        assert not images.is_contiguous()


def test_parity_refuses_an_unknown_memory_format(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "--model.memory_format", "nchw"]) == 2
    assert (
        "--model.memory_format: expected auto, contiguous, channels_last, batch_last or null" in capsys.readouterr().err
    )
    Path("mine.yaml").write_text("model: {memory_format: nchw}\n")
    assert main(["parity", "--config", "mine.yaml"]) == 2
    assert "in model.memory_format, got 'nchw'" in capsys.readouterr().err


def test_a_large_network_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGEST", 1_000)
    monkeypatch.setattr(memory, "_trial", lambda *_: pytest.fail("expected no trial"))
    net = build_net("simple_cnn", num_classes=10)
    swap_layers(net, "numpy")
    found = memory.chosen(net, torch.device("cpu"), (1, 28, 28), compiled=False)
    assert str(found) == "memory: contiguous (0 million weights are too many for a trial)"
