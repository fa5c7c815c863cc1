"""Tests on a GPU: results of CuPy, no copies to the host, no waiting, whole runs. And messages about GPUs."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from cnn_lightning import build_net, layers, swap_layers
from cnn_lightning.cli import main
from cnn_lightning.layers import bridge
from cnn_lightning.layers.bridge import cuda as on_cuda
from cnn_lightning.layers.bridge import host
from cnn_lightning.tools.parity.lockstep import compare
from tests.cases import Case, Sample
from tests.test_layers import SAMPLES, assert_equal, build, run

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def cupy() -> Any:
    return pytest.importorskip("cupy", reason="CuPy is not installed")


@pytest.fixture
def full_float32() -> Iterator[None]:
    """cuDNN's convolutions in the precision that CuPy's have."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def moved(values: Any) -> Any:
    return tuple(value.cuda() if isinstance(value, Tensor) else value for value in values)


def network(implementation: str, name: str = "simple_cnn", size: int = 28) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = build_net(name, num_classes=10, in_channels=1 if name == "simple_cnn" else 3, image_size=size)
    swap_layers(net, implementation)
    return net.cuda(), layers.CrossEntropyLoss() if implementation == "numpy" else nn.CrossEntropyLoss()


def batch(n: int, channels: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, channels, size, size, generator=generator)
    return images.cuda(), torch.randint(10, (n,), generator=generator).cuda()


class Steps:
    """A network and how it is trained."""

    def __init__(
        self, implementation: str, name: str = "simple_cnn", size: int = 28, dtype: torch.dtype = torch.float32
    ) -> None:
        self.net, self.loss = network(implementation, name, size)
        self.net.to(dtype)
        images, self.labels = batch(16, 1 if name == "simple_cnn" else 3, size)
        self.images = images.to(dtype)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)

    def step(self) -> Tensor:
        self.optimizer.zero_grad()
        loss: Tensor = self.loss(self.net(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class TestOnAGPU:
    """Each is skipped where there is none."""

    pytestmark = on_a_gpu

    def test_a_tensor_is_shared_not_copied(self, cupy: Any) -> None:
        x = torch.arange(3.0, device="cuda")
        seen: list[Any] = []

        def double(array: Any) -> Any:
            seen.append(array)
            seen.append(array + array)
            return seen[1]

        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.no_grad():
                y = bridge.call(double, x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(isinstance(array, cupy.ndarray) for array in seen)
        assert [array.data.ptr for array in seen] == [x.data_ptr(), y.data_ptr()]
        assert y.tolist() == [0, 2, 4]

    def test_memory_comes_from_torch(self, cupy: Any) -> None:
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            y = bridge.call(lambda x: np.empty((2**20,), np.float32, like=x), torch.ones(1, device="cuda"))
        assert torch.cuda.memory_allocated() - before >= 2**22
        del y
        assert torch.cuda.memory_allocated() - before < 2**22

    @pytest.mark.parametrize(("case", "sample"), SAMPLES)
    def test_values_and_gradients_equal_the_native_layer(self, cupy: Any, case: Case, sample: Sample) -> None:
        ours, native = build(case, sample, torch.float64)
        if "Dropout" in case.name:
            native = native.cuda()  # whose mask is the GPU's
        inputs = sample.inputs(torch.float64)
        expected = run(native, moved(inputs) if "Dropout" in case.name else inputs)
        found = run(ours.cuda(), moved(inputs))
        assert all(tensor.is_cuda for tensor in found[0])
        assert_equal(*([[t.cpu() for t in tensors] for tensors in part] for part in (found, expected)), 1e-10)  # type: ignore[arg-type, call-arg]

    @pytest.mark.parametrize(("name", "size"), [("simple_cnn", 28), ("resnet18", 64)])
    def test_training_equals_torch(self, cupy: Any, name: str, size: int) -> None:
        """In float64: in three steps of ResNet-18, float32's rounding grows to 4e-3."""
        ours, native = (Steps(implementation, name, size, torch.float64) for implementation in ("numpy", "torch"))
        for _ in range(3):
            torch.testing.assert_close(ours.step(), native.step(), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
    def test_a_step_copies_nothing_and_waits_for_nothing(
        self, cupy: Any, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = Steps("numpy", name, 28 if name == "simple_cnn" else 64)
        steps.step()  # kernels are compiled and loaded
        for owner, attribute in (
            (cupy.ndarray, "get"),
            (cupy.ndarray, "item"),
            (cupy, "asnumpy"),
            (cupy.cuda.runtime, "streamSynchronize"),
            (cupy.cuda.runtime, "deviceSynchronize"),
            (cupy.cuda.runtime, "memcpy"),
        ):
            monkeypatch.setattr(owner, attribute, lambda *_, what=attribute, **__: pytest.fail(f"CuPy's {what}"))
        with profile(activities=[ProfilerActivity.CUDA]) as record:
            torch.cuda.set_sync_debug_mode("error")
            try:
                steps.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        copies = [event.name for event in record.events() or [] if re.search("Memcpy (DtoH|HtoD)", event.name)]
        assert copies == []

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_gives_the_native_dtypes_and_nearly_the_native_loss(self, cupy: Any, dtype: torch.dtype) -> None:
        ours, native = Steps("numpy"), Steps("torch")
        with torch.autocast("cuda", dtype=dtype):
            outputs = [steps.net(steps.images) for steps in (ours, native)]
            losses = [steps.step() for steps in (ours, native)]
        assert outputs[0].dtype == outputs[1].dtype
        assert losses[0].dtype == losses[1].dtype
        torch.testing.assert_close(*losses, rtol=0.02, atol=0.02)

    def test_without_cupy_the_host_computes_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(on_cuda, "available", lambda: False)
        monkeypatch.setattr(host, "_noticed", False)
        ours, native = Steps("numpy"), Steps("torch")
        with pytest.warns(UserWarning, match="the NumPy layers run on the host"):
            losses = ours.step(), native.step()
        torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-2)

    def test_a_stream_of_ones_own_is_followed(self, cupy: Any) -> None:
        stream, seen = torch.cuda.Stream(), []

        def note(x: Any) -> Any:
            seen.append(cupy.cuda.get_current_stream().ptr)
            return x + x

        with torch.cuda.stream(stream), torch.no_grad():
            bridge.call(note, torch.ones(2, device="cuda"))
        stream.synchronize()
        assert seen == [stream.cuda_stream]

    def test_a_cuda_graph_is_refused(self, cupy: Any) -> None:
        x, graph = torch.ones(2, device="cuda"), torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match="expected no CUDA graph to be captured"), torch.cuda.graph(graph):
            layers.ReLU()(x)

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
    @pytest.mark.usefixtures("full_float32")
    def test_torch_compile(self, cupy: Any, mode: str) -> None:
        ours, native = Steps("numpy"), Steps("torch")
        ours.net.compile(mode=mode)
        for _ in range(4):
            torch.testing.assert_close(ours.step(), native.step(), rtol=1e-3, atol=1e-4)

    def test_fit(self, cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["fit", "--config", "gpu", "--trainer.enable_progress_bar", "false"]) == 0
        printed = capsys.readouterr().out
        assert "(formula: on cuda)" in printed
        accuracy = re.search(r"test_acc: (0\.\d+)", printed)
        assert accuracy is not None
        assert float(accuracy[1]) > 0.95

    def test_commands(self, cupy: Any, capsys: Any) -> None:
        assert main(["parity", "--device", "cuda", "--precision", "64"]) == 0
        assert main(["parity", "--device", "cuda"]) == 0
        assert "(formula: on cuda): all NumPy layers" in capsys.readouterr().out
        assert main(["benchmark", "--device", "cuda", "--rounds", "2"]) == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "fsdp"])
    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
    def test_two_gpus(self, cupy: Any, strategy: str, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "cnn_lightning", "fit", "--config", "gpu", "--trainer.devices", "2"]
        command += ["--trainer.strategy", strategy, "--trainer.max_epochs", "2"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "test_acc: " in done.stdout


# ---- without a GPU


def test_the_report_says_that_formulas_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    report = swap_layers(build_net("simple_cnn"), "numpy")
    monkeypatch.setattr(on_cuda, "available", lambda: True)
    text = str(report.on(torch.device("cuda", 0)))
    assert text.count("numpy  (formula: on cuda)") == 9
    assert "fast" not in text
    assert "fast" in str(report.on(torch.device("cpu")))
    monkeypatch.setattr(on_cuda, "available", lambda: False)  # copies to the host, where fast functions run
    assert "fast" in str(report.on(torch.device("cuda", 0)))


def test_parity_compares_full_float32() -> None:
    """TF32 rounds to 10 bits: as an error of a GPU's convolution, 3e-4, it was called torch's mistake."""
    seen: list[bool] = []
    images, labels = torch.zeros(2, 1, 28, 28), torch.zeros(2, dtype=torch.int64)
    before = torch.backends.cudnn.allow_tf32
    compare(
        build_net("simple_cnn"),
        batches=[(images, labels)],
        tick=lambda _: seen.append(torch.backends.cudnn.allow_tf32),
    )
    assert set(seen) == {False}
    assert torch.backends.cudnn.allow_tf32 is before


# the README's commands are accepted


def typed() -> list[list[str]]:
    """The arguments of the README's commands that say where to run."""
    text = README.read_text().replace("\\\n", " ")
    lines = [line.partition("#")[0] for line in text.splitlines() if re.match(r"(cnn-lightning|torchrun|srun) ", line)]
    commands = [re.split(r"cnn[-_]lightning ", line, maxsplit=1)[1] for line in lines]
    return [shlex.split(command) for command in commands if "config gpu" in command or "config ddp" in command]


@pytest.mark.parametrize("args", typed(), ids=" ".join)
def test_what_the_readme_says_of_devices_is_accepted(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*args, "--print_config"]) == 0
    config = capsys.readouterr().out
    assert f"accelerator: {'gpu' if 'gpu' in args else 'cpu'}" in config


def test_the_readme_has_one_gpu_several_and_several_nodes() -> None:
    text = [" ".join(args) for args in typed()]
    assert any("devices" not in line and "gpu" in line for line in text)
    assert any("devices" in line and "num_nodes" not in line for line in text)
    assert sum("num_nodes" in line for line in text) == 2
    assert "for proofs and for operations of your own, not for speed" in README.read_text()
