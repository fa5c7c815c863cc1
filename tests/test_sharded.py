"""Sharded parameters (FSDP): NumPy layers train as native ones do."""

import os
import socket
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.multiprocessing.spawn import start_processes

from cnn_lightning import build_net, layers, swap_layers
from tests.processes import START

STEPS, PROCESSES = 3, 2


def whole(net: nn.Module) -> nn.Module:
    return net


def sharded(net: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for module in list(net.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def sharded_in_the_old_way(net: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu"))


def losses(wrap: Any, implementation: str, rank: int, of: int) -> list[float]:
    """The mean losses of a few steps on this process's fraction of fixed batches."""
    torch.manual_seed(0)
    net = build_net("simple_cnn", in_channels=1, image_size=16, channels=(4, 8), hidden=16)
    swap_layers(net, implementation)
    loss = layers.CrossEntropyLoss() if implementation == "numpy" else nn.CrossEntropyLoss()
    net = wrap(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 1, 16, 16, generator=generator)[rank::of]
        y = torch.randint(10, (8,), generator=generator)[rank::of]
        optimizer.zero_grad()
        value = loss(net(x), y)
        value.backward()
        optimizer.step()
        mean = value.detach().clone()
        distributed.all_reduce(mean)
        found.append(mean.item() / PROCESSES)
    return found


def process(rank: int, port: int, results: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    expected = losses(whole, "torch", 0, 1)
    found = [losses(wrap, "numpy", rank, PROCESSES) for wrap in (sharded, sharded_in_the_old_way)]
    if rank == 0:
        results.put((expected, found))
    distributed.destroy_process_group()


@pytest.mark.ddp
def test_fsdp_trains_numpy_layers_as_whole_native_ones() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    results = multiprocessing.get_context(START).SimpleQueue()
    start_processes(process, (port, results), nprocs=PROCESSES, start_method=START)
    expected, found = results.get()
    for curve in found:
        assert curve == pytest.approx(expected, rel=1e-4)
