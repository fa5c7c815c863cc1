"""Other tools and features of torch used with NumPy layers: results are those of native layers, or one clear error."""

import copy
import threading
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from cnn_lightning import build_net, layers, swap_layers
from tests.cases import Case, load
from tests.test_classifier import classifier, train
from tests.test_layers import build, tensors

CASES = [pytest.param(case, id=case.name) for case in load()]
BOTH = ("numpy", "torch")
MIXED = {"conv1": "numpy", "*": "torch"}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*lr_scheduler.step.*",
    "ignore:.*in eval mode.*",
    "ignore:.*torch.jit.script.*:FutureWarning",  # torch.func.jvp itself uses it
)


class Small(nn.Module):
    """Layers of several kinds, one ReLU used twice and an in-place addition, as in ResNet."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.relu = nn.ReLU(inplace)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.GELU(), nn.Dropout(0.3))
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3), nn.LogSoftmax(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.body(x)
        y += x
        logits: Tensor = self.head(self.relu(y))
        return logits


def small(spec: Any = "numpy", inplace: bool = True) -> Small:
    torch.manual_seed(0)
    net = Small(inplace).double()
    swap_layers(net, spec)
    return net


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def gradients(net: nn.Module, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Of the input and of all parameters, then the buffers."""
    torch.manual_seed(1)
    net.zero_grad()
    x = images().requires_grad_()
    (forward(x) * torch.arange(3.0)).sum().backward()
    found = [x.grad, *(parameter.grad for parameter in net.parameters())]
    assert all(gradient is not None for gradient in found)
    return [*(gradient.clone() for gradient in found if gradient is not None), *net.buffers()]


def assert_equal(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-9) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ---- activation checkpointing


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(use_reentrant: bool) -> None:
    found = []
    for spec in BOTH:
        net = small(spec)

        def forward(x: Tensor, net: Small = net) -> Tensor:
            x = checkpoint(lambda value: net.relu(net.stem(value)), x, use_reentrant=use_reentrant)
            y = checkpoint(net.body, x, use_reentrant=use_reentrant) + x
            logits: Tensor = net.head(net.relu(y))
            return logits

        found.append(gradients(net, forward))
    plain = small("torch")
    # Batch normalisation takes the batch into its statistics again, with native layers too.
    parameters = len(list(plain.parameters())) + 1
    assert_equal(found[0][:parameters], gradients(plain, plain)[:parameters])
    first, second = found
    assert_equal(first, second)


# ---- through the Trainer


TRAINERS: dict[str, dict[str, Any]] = {
    "clipping by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "accumulation, clipping by norm": {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2},
}


@pytest.mark.parametrize("options", TRAINERS.values(), ids=TRAINERS.keys())
def test_gradient_accumulation_and_clipping(options: dict[str, Any]) -> None:
    plain = train(classifier("torch"), 10, "64-true")
    expected = train(classifier("torch"), 10, "64-true", **options)
    assert max(abs(a - b) for a, b in zip(plain, expected, strict=False)) > 1e-3, "the option does nothing"
    for spec in ("numpy", MIXED):
        found = train(classifier(spec), 10, "64-true", **options)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-9


def _averaging(name: str) -> Any:
    if name == "swa":
        return StochasticWeightAveraging(1e-3, swa_epoch_start=1, annealing_epochs=1)
    return EMAWeightAveraging(decay=0.9)


@pytest.mark.parametrize("name", ["swa", "ema"])
@pytest.mark.filterwarnings("ignore:.*SWA.*", "ignore:.*[Ss]wapping scheduler.*", "ignore:.*Swapping.*")
def test_weight_averaging_callbacks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch import Trainer

    from cnn_lightning.data import Digits

    weights = []
    for spec in (None, "torch", "numpy", MIXED):
        model = classifier(spec or "torch", schedule="none", channels=(4,), hidden=8)
        trainer = Trainer(
            max_epochs=3,
            limit_train_batches=5,
            limit_val_batches=0,
            precision="64-true",
            callbacks=[_averaging(name)] if spec else [],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, Digits())
        weights.append([parameter.detach() for parameter in model.net.parameters()])
    plain, expected, *found = weights
    assert max((a - b).abs().max().item() for a, b in zip(plain, expected, strict=True)) > 1e-4, "nothing was averaged"
    for others in found:
        assert_equal(others, expected)


def test_averaged_model_and_its_batch_statistics() -> None:
    averages = []
    for spec in BOTH:
        net = small(spec)
        average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        torch.manual_seed(2)
        for n in (4, 5, 6):
            optimizer.zero_grad()
            net(images(n)).square().sum().backward()
            optimizer.step()
            average.update_parameters(net)
        update_bn([images(7), images(8)], average)
        kinds = {type(module).__module__.split(".")[0] for module in average.modules() if not list(module.children())}
        assert kinds == {"cnn_lightning" if spec == "numpy" else "torch"}
        averages.append([*average.parameters(), *average.buffers()])
    first, second = averages
    assert_equal(first, second)


# ---- workers


class Smoothed(Dataset[Tensor]):
    """Pictures that a NumPy layer has processed, in the process that reads them."""

    def __init__(self) -> None:
        self.blur = layers.AvgPool2d(3, 1, 1)
        self.net = small().eval()

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.net(self.blur(images(index + 2)))
        return found[0]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_layers_inside_workers(context: str) -> None:
    data = Smoothed()
    data[0]  # the thread pool is there when the process is forked
    alone = torch.stack([data[index] for index in range(len(data))])
    loader = DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context=context, timeout=60)
    torch.testing.assert_close(torch.cat(list(loader)), alone, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_training_on_what_workers_load() -> None:
    data = TensorDataset(images(48), torch.arange(48) % 3)
    curves = []
    for spec in BOTH:
        net = small(spec)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        torch.manual_seed(3)
        losses = []
        for x, target in DataLoader(data, batch_size=12, shuffle=True, num_workers=2, timeout=60):
            loss = nn.functional.nll_loss(net(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        curves.append(losses)
    first, second = curves
    assert_equal(first, second)


# ---- modes


def test_inference_mode_and_what_it_leaves_behind() -> None:
    outputs = []
    for spec in BOTH:
        net = small(spec).eval()
        with torch.inference_mode():
            made = images() * 1
            outputs.append(net(made))
        assert outputs[-1].is_inference()
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            net(made)
        gradients(net, net)  # the network itself trains on
    assert_equal([outputs[0]], [outputs[1]])


# ---- torch.func


def test_functional_call() -> None:
    found = []
    for spec in BOTH:
        net = small(spec)
        state = {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}
        torch.manual_seed(4)
        output = torch.func.functional_call(net, state, (images(),))
        found.append([output, *torch.autograd.grad(output.square().sum(), list(state.values()))])
    first, second = found
    assert_equal(first, second)


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "grad": lambda net, x: torch.func.grad(lambda value: tensors(net(value))[0].sum())(x),
    "vmap": lambda net, x: torch.vmap(net)(x.unsqueeze(0)),
    "jvp": lambda net, x: torch.func.jvp(lambda value: tensors(net(value))[0], (x,), (x,)),
    "jacrev": lambda net, x: torch.func.jacrev(lambda value: tensors(net(value))[0].sum())(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_torch_func_is_refused_in_one_line_that_names_the_remedy(transform: Callable[..., Any]) -> None:
    net = small().eval()
    with pytest.raises(RuntimeError, match=r"^input: torch\.func.*swap_layers\(net, 'torch'\) first$") as error:
        transform(net, images())
    assert "\n" not in str(error.value)
    swap_layers(net, "torch")
    transform(net, images())


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
@pytest.mark.parametrize("case", CASES)
def test_torch_func_is_never_silently_wrong(case: Case, transform: str) -> None:
    ours, native = build(case, case.samples[0], torch.float64)
    x, *rest = case.samples[0].inputs(torch.float64)

    def use(layer: nn.Module) -> Any:
        layer.eval()
        whole = _With(layer, rest)
        return TRANSFORMS[transform](whole, x)

    if case.is_view or case.name in ("Dropout1d", "Dropout2d"):  # in evaluation the input itself
        torch.testing.assert_close(use(ours), use(native))
        return
    with pytest.raises(RuntimeError, match=r"torch\.func|functorch") as error:
        use(ours)
    assert "\n" not in str(error.value)


class _With(nn.Module):
    """A layer with all its arguments but the first."""

    def __init__(self, layer: nn.Module, rest: list[Any]) -> None:
        super().__init__()
        self.layer, self.rest = layer, rest

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, *self.rest)


@pytest.mark.parametrize("case", CASES)
def test_forward_mode_is_refused_in_one_line(case: Case) -> None:
    ours, _ = build(case, case.samples[0], torch.float64)
    x, *rest = case.samples[0].inputs(torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        if case.is_view:
            assert forward_ad.unpack_dual(ours(dual)).tangent is not None
            return
        with pytest.raises(NotImplementedError, match="forward mode AD") as error:
            ours(dual, *rest)
    assert "\n" not in str(error.value)


def test_batches_of_gradients_are_refused() -> None:
    layer = layers.Linear(3, 2)
    x = torch.randn(4, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.autograd.grad(layer(x), x, torch.ones(5, 4, 2), is_grads_batched=True)
    one_by_one = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(one_by_one.sum((0, 1, 2)), 4 * layer.weight.sum(0))


# ---- copies


def test_replicas_in_threads_as_data_parallel_makes_them() -> None:
    found = []
    for spec in BOTH:
        net = small(spec).eval()
        replicas = [_replica(net) for _ in range(3)]
        outputs: list[Any] = [None] * 3

        def run(index: int, replicas: list[Any] = replicas, outputs: list[Any] = outputs) -> None:
            outputs[index] = replicas[index](images(index + 4))

        threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        torch.cat(outputs).square().sum().backward()
        found.append([*outputs, *(parameter.grad for parameter in net.parameters())])
    first, second = found
    assert_equal(first, second)


def _replica(net: nn.Module) -> nn.Module:
    """What ``torch.nn.parallel.replicate`` does: shallow copies of the modules over tensors of autograd's."""
    twins = {module: module._replicate_for_data_parallel() for module in net.modules()}
    for module, twin in twins.items():
        for name, child in module._modules.items():
            if child is not None:
                twin._modules[name] = twins[child]
        for name, parameter in module._parameters.items():
            setattr(twin, name, None if parameter is None else parameter * 1)
    return twins[net]


def test_deepcopy_in_the_middle_of_a_graph() -> None:
    found = []
    for spec in BOTH:
        net = small(spec)
        torch.manual_seed(5)
        loss = net(images()).square().sum()
        twin = copy.deepcopy(net)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(2)
        loss.backward()
        assert all(parameter.grad is None for parameter in twin.parameters())
        assert [type(module) for module in twin.modules()] == [type(module) for module in net.modules()]
        twin(images()).square().sum().backward()
        found.append([parameter.grad for each in (net, twin) for parameter in each.parameters()])
    assert_equal(*found)  # type: ignore[arg-type]


# ---- TorchScript


@pytest.fixture
def _deprecated() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


@pytest.mark.usefixtures("_deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_network_is_traced_with_native_layers() -> None:
    net = small().eval()
    with pytest.raises(
        RuntimeError, match=r"^conv2d: torch.jit.trace can't record .*swap_layers\(net, 'torch'\) first"
    ):
        torch.jit.trace(net, images(2), check_trace=False)
    swap_layers(net, "torch")
    torch.jit.save(torch.jit.trace(net, images(2)), BytesIO())


@pytest.mark.usefixtures("_deprecated")
def test_script_is_refused() -> None:
    net = build_net("resnet18", num_classes=3, image_size=32).eval()
    swap_layers(net, "numpy")
    with pytest.raises(
        RuntimeError, match=r"^Conv2d: torch.jit.script can't compile .*swap_layers\(net, 'torch'\) first"
    ):
        torch.jit.script(net)
    swap_layers(net, "torch")
    torch.jit.script(net)
