"""Batch normalisation over several processes: one batch, of which each process has some samples."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import DataLoader, TensorDataset

from cnn_lightning import layers, swap_layers
from cnn_lightning.callbacks.sync import SyncBatchNorm
from cnn_lightning.errors import UserError
from cnn_lightning.layers.norm import SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d
from tests.processes import START
from tests.test_layers import assert_equal, run


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), layers.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), layers.BatchNorm1d(64)
    )
    return net.double().append(nn.Linear(64, 3).double())


def batches() -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Images, what their outputs are multiplied by in the loss, and how many of them each of two processes has."""
    generator = torch.Generator().manual_seed(0)
    for sizes in ([3, 3], [5, 2], [4, 0]):
        x, factor = (
            torch.randn(sum(sizes), *shape, generator=generator, dtype=torch.float64) for shape in ((1, 6, 6), (3,))
        )
        yield 5 + x, factor, sizes


def steps(net: nn.Module, rank: int | None) -> list[Tensor]:
    """Outputs and gradients of all batches, of this process's samples of each, and then the buffers."""
    found = []
    for x, factor, sizes in batches():
        first = 0 if not rank else sizes[0]
        part = slice(None) if rank is None else slice(first, first + sizes[rank])
        leaf = x[part].clone().requires_grad_()
        net.zero_grad()
        y = net(leaf)
        (y * factor[part]).sum().backward()
        assert leaf.grad is not None
        found += [y.detach(), leaf.grad, *(parameter.grad for parameter in net.parameters())]
    return [*found, *net.buffers()]


def process(rank: int, port: int, results: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for implementation in ("numpy", "torch"):
        net = network()
        swap_layers(net, implementation)
        torch.save(steps(SyncBatchNorm().apply(net), rank), results / f"{implementation}{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.ddp
def test_two_processes_normalise_as_one(tmp_path: Any) -> None:
    """Also where one of them has fewer images than the other, or none; native layers too."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    start_processes(process, (port, tmp_path), nprocs=2, start_method=START)
    expected = steps(network(), None)
    count = len(list(network().parameters())) + 2
    for implementation in ("numpy", "torch"):
        first, second = (torch.load(tmp_path / f"{implementation}{rank}.pt") for rank in range(2))
        for index, (a, b, value) in enumerate(zip(first, second, expected, strict=True)):
            if index >= 3 * count:
                assert torch.equal(a, b)
                found = a
            else:
                found = torch.cat([a, b]) if index % count < 2 else a + b
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12)


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, y = (part[self.global_rank :: self.trainer.world_size] for part in batch)
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(**options: Any) -> Model:
    seed_everything(0, verbose=False)
    model = Model()
    data = TensorDataset(torch.randn(16, 1, 6, 6, dtype=torch.float64), torch.randint(3, (16,)))
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(model, DataLoader(data, 8))
    return model


@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_trainer_with_two_processes_ends_with_the_weights_of_one() -> None:
    alone = fit(devices=1)
    both: Any = fit(devices=2, strategy="ddp_spawn", sync_batchnorm=True, plugins=[SyncBatchNorm()])
    assert type(both.net[1]) is layers.BatchNorm2d
    for a, b in zip(both.state_dict().values(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


LEAVING = """
import atexit
from torch import distributed
atexit.register(lambda: print(distributed.is_initialized()))  # called last
import torch
from cnn_lightning.callbacks import SyncBatchNorm
distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
SyncBatchNorm().apply(torch.nn.Sequential())
"""


def test_a_process_leaves_its_group_before_the_interpreter_ends() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_layers_are_changed_for_the_time_of_training_only() -> None:
    net = nn.Sequential(layers.BatchNorm1d(2), nn.BatchNorm2d(2), layers.BatchNorm3d(2), nn.GroupNorm(1, 2))
    before, keys = [type(module) for module in net], list(net.state_dict())
    plugin = SyncBatchNorm()
    assert plugin.apply(net) is net
    assert [type(module) for module in net] == [SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d, nn.GroupNorm]
    assert list(net.state_dict()) == keys
    assert plugin.revert(net) is net
    assert [type(module) for module in net] == before


def test_native_layers_become_torchs_own_on_gpus_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_backend", lambda: "nccl")
    net: Any = nn.Sequential(layers.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm3d(2)))
    native, weight, mean = net[1][0], net[1][0].weight, net[1][0].running_mean
    plugin = SyncBatchNorm()
    plugin.apply(net)
    assert [type(net[0]), type(net[1][0]), type(net[1][1])] == [SyncBatchNorm2d, nn.SyncBatchNorm, nn.SyncBatchNorm]
    assert net[1][0].weight is weight
    assert net[1][0].running_mean is mean
    plugin.revert(net)
    assert net[1][0] is native
    assert type(net[0]) is layers.BatchNorm2d


def test_alone_the_synchronised_layer_is_the_plain_one() -> None:
    x = torch.randn(4, 2, 3, 3)
    assert_equal(run(SyncBatchNorm2d(2), (x,)), run(layers.BatchNorm2d(2), (x,)), 0.0)
    x = torch.randn(4, 2, 3, 3, 2)
    assert_equal(run(SyncBatchNorm3d(2), (x,)), run(layers.BatchNorm3d(2), (x,)), 0.0)


def test_what_can_not_be_synchronised_without_a_gpu_is_named() -> None:
    net = nn.Sequential(nn.ReLU(), nn.LazyBatchNorm3d())
    with pytest.raises(UserError, match=r"trainer.sync_batchnorm: 1: expected .*, got LazyBatchNorm3d"):
        SyncBatchNorm().apply(net)


def test_torchs_own_conversion_puts_its_layer_in_the_place_of_ours() -> None:
    """Which computes natively, and with several processes on a GPU only: hence the plugin."""
    ours = layers.BatchNorm2d(3)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(ours)
    assert type(converted) is nn.SyncBatchNorm
    assert converted.weight is ours.weight
