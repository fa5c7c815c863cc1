"""Train a small CNN in torch: the program defines the forward, and autograd computes the gradients.

python -m cnn_lightning.plain.train_torch --data digits --epochs 10

Read it beside train_numpy.py (``diff -y``): the lines on the other side alone do what autograd does here.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnn_lightning.errors import UserError
from cnn_lightning.plain import flags, images, weights


class SimpleCNN(nn.Module):
    """Convolution, ReLU, pooling, twice; then linear, ReLU, linear."""

    def __init__(self, in_channels: int = 1, image_size: int = 28, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.linear1 = nn.Linear(32 * (image_size // 4) ** 2, 128)
        self.relu3 = nn.ReLU()
        self.linear2 = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, C, H, W) to predictions (N, num_classes)."""
        for layer in self.children():
            x = layer(x)
        return x


@torch.no_grad()
def accuracy(model: SimpleCNN, split: images.Pictures) -> float:
    """The fraction of pictures whose largest prediction is at the true class."""
    pictures, labels = (torch.from_numpy(array).to(model.linear2.weight.device) for array in split)
    right = 0
    for start in range(0, len(labels), 500):
        predictions = model(pictures[start : start + 500])
        right += int((predictions.argmax(1) == labels[start : start + 500]).sum())
    return right / len(labels)


def train(args: Sequence[str] | None = None) -> list[float]:
    """Train as the flags say, and return the loss of every step."""
    options = flags.parse("train_torch", __doc__, args)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device: expected a device that torch sees here, got {options.device}")
    data = images.read(options.data, options.root, options.dtype)
    torch.manual_seed(options.seed)
    model = SimpleCNN(data.in_channels, data.image_size, data.num_classes)
    state = model.state_dict()
    if options.weights is not None:
        found = weights.load(options.weights, {name: tuple(value.shape) for name, value in state.items()})
        state = {name: torch.from_numpy(value) for name, value in found.items()}
    model = model.to(options.device, getattr(torch, options.dtype))
    model.load_state_dict(state)
    criterion = nn.CrossEntropyLoss()
    optimizers: dict[str, Any] = {"sgd": partial(torch.optim.SGD, momentum=0.9), "adam": torch.optim.Adam}
    optimizer = optimizers[options.optimizer](model.parameters(), options.lr)
    losses: list[float] = []
    for epoch in range(options.epochs):
        start, steps = time.perf_counter(), len(losses)
        batches = images.Batches(data.train, options.batch_size, options.seed, epoch)
        for pictures, labels in flags.progress(batches, epoch):
            optimizer.zero_grad()
            outputs = model(torch.from_numpy(pictures).to(options.device))
            loss = criterion(outputs, torch.from_numpy(labels).to(options.device))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        mean, seconds = sum(losses[steps:]) / len(batches), time.perf_counter() - start
        print(f"epoch {epoch + 1}: loss {mean:.4f}, val_acc {accuracy(model, data.val):.4f}, {seconds:.2f} s")
    print(f"test_acc: {accuracy(model, data.test):.4f}")
    if options.save is not None:
        weights.save(options.save, {name: value.numpy(force=True) for name, value in model.state_dict().items()})
    return losses


if __name__ == "__main__":
    flags.run(train)
