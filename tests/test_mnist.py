"""The real pictures of MNIST, from the folder that the variable CNN_LIGHTNING_DATA names."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import cnn_lightning
from cnn_lightning.cli import main
from cnn_lightning.data import MNIST

ROOT = os.environ.get("CNN_LIGHTNING_DATA", "")
pytestmark = pytest.mark.skipif(not ROOT, reason="CNN_LIGHTNING_DATA: expected a folder that holds MNIST/raw, got none")


def test_the_pictures_are_those_of_mnist() -> None:
    """Their numbers, and mean and standard deviation of their pixels, by which they are normalised."""
    data = MNIST(root=ROOT, batch_size=1000, augment=False)
    data.setup("fit")
    data.setup("test")
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    pictures = [torch.cat([images for images, _ in loader]) for loader in loaders]
    assert len(pictures[0]) + len(pictures[1]) == 60_000
    assert len(pictures[2]) == 10_000
    assert pictures[0].shape[1:] == (1, 28, 28)
    assert abs(pictures[0].mean()) < 2e-3
    assert abs(pictures[0].std() - 1) < 2e-3


def test_both_tiers_train_alike_on_real_pictures() -> None:
    """20 steps of 64 pictures in float64."""
    data = MNIST(root=ROOT, batch_size=64)
    data.setup("fit")
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(20), strict=False)]
    losses: dict[bool, list[float]] = {True: [], False: []}
    for on, values in losses.items():
        torch.manual_seed(0)
        net = cnn_lightning.SimpleCNN().double()
        cnn_lightning.swap_layers(net, "numpy")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with cnn_lightning.fast(on):
            for images, target in batches:
                optimizer.zero_grad()
                value = nn.functional.cross_entropy(net(images.double()), target)
                value.backward()
                optimizer.step()
                values.append(value.item())
    assert losses[True][-1] < 0.9 * losses[True][0]
    np.testing.assert_allclose(losses[False], losses[True], rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_formulas_alone_reach_the_accuracy_of_fast_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All five epochs, in float32: within 0.2 %."""
    monkeypatch.chdir(tmp_path)
    accuracy = {}
    for fast in ("true", "false"):
        assert main(["fit", "--config", "mnist", "--data.root", ROOT, "--model.fast", fast]) == 0
        (found,) = re.findall(r"^test_acc: ([\d.]+)", capsys.readouterr().out, re.MULTILINE)
        accuracy[fast] = float(found)
    assert accuracy["true"] > 0.985
    assert abs(accuracy["true"] - accuracy["false"]) <= 0.002, accuracy
