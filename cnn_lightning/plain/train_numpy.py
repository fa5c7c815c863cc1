"""Train a small CNN in NumPy: every layer computes its gradients and passes them on explicitly.

python -m cnn_lightning.plain.train_numpy --data digits --epochs 10

Read it beside train_torch.py (``diff -y``): the lines on this side alone do what autograd does there.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cnn_lightning.errors import UserError
from cnn_lightning.ops import activation, conv, linear, loss, pool
from cnn_lightning.ops.types import Array
from cnn_lightning.plain import flags, images, weights


class Conv2D:
    """Convolution with stride 1: ``weights`` (O, C, k, k) and ``bias`` (O,)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int = 0, seed: Any = 0) -> None:
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weights, self.bias = initial(shape, seed)
        self.padding = padding

    def forward(self, x: Array) -> Array:
        """(N, C, H, W) to (N, O, H', W')."""
        self.x = x
        return conv.conv2d(x, self.weights, self.bias, padding=self.padding)

    def backward(self, grad_output: Array) -> Array | None:
        """The gradient of the input; the gradients of weights and bias stay in the layer."""
        gradients = conv.conv2d_backward(grad_output, self.x, self.weights, padding=self.padding)
        grad_input, self.grad_weights, self.grad_bias = gradients
        return grad_input


class ReLU:
    """max(x, 0)."""

    def forward(self, x: Array) -> Array:
        """Any shape."""
        self.x = x
        return activation.relu(x)

    def backward(self, grad_output: Array) -> Array:
        """The gradient where x is positive, and 0 elsewhere."""
        return activation.relu_backward(grad_output, self.x)


class MaxPool2D:
    """The largest value of each window."""

    def __init__(self, kernel_size: int) -> None:
        self.kernel_size = kernel_size

    def forward(self, x: Array) -> Array:
        """(N, C, H, W) to (N, C, H // k, W // k)."""
        self.x = x
        return pool.max_pool2d(x, kernel_size=self.kernel_size)

    def backward(self, grad_output: Array) -> Array:
        """The gradient at the largest value of each window, and 0 elsewhere."""
        return pool.max_pool2d_backward(grad_output, self.x, kernel_size=self.kernel_size)


class Flatten:
    """Each picture as a row of values."""

    def forward(self, x: Array) -> Array:
        """(N, C, H, W) to (N, C * H * W)."""
        self.shape = x.shape
        return x.reshape(self.shape[0], int(np.prod(self.shape[1:])))

    def backward(self, grad_output: Array) -> Array:
        """The rows as pictures again."""
        return grad_output.reshape(self.shape)


class Linear:
    """``x weights^T + bias``: ``weights`` (O, I) and ``bias`` (O,)."""

    def __init__(self, in_features: int, out_features: int, seed: Any = 0) -> None:
        self.weights, self.bias = initial((out_features, in_features), seed)

    def forward(self, x: Array) -> Array:
        """(N, I) to (N, O)."""
        self.x = x
        return linear.linear(x, self.weights, self.bias)

    def backward(self, grad_output: Array) -> Array | None:
        """The gradient of the input; the gradients of weights and bias stay in the layer."""
        grad_input, self.grad_weights, self.grad_bias = linear.linear_backward(grad_output, self.x, self.weights)
        return grad_input


class SimpleCNN:
    """Convolution, ReLU, pooling, twice; then linear, ReLU, linear."""

    def __init__(self, in_channels: int = 1, image_size: int = 28, num_classes: int = 10, seed: int = 0) -> None:
        self.conv1 = Conv2D(in_channels, 16, kernel_size=3, padding=1, seed=[seed, 1])
        self.relu1 = ReLU()
        self.pool1 = MaxPool2D(2)
        self.conv2 = Conv2D(16, 32, kernel_size=3, padding=1, seed=[seed, 2])
        self.relu2 = ReLU()
        self.pool2 = MaxPool2D(2)
        self.flatten = Flatten()
        self.linear1 = Linear(32 * (image_size // 4) ** 2, 128, seed=[seed, 3])
        self.relu3 = ReLU()
        self.linear2 = Linear(128, num_classes, seed=[seed, 4])
        self.layers: list[Any] = [self.conv1, self.relu1, self.pool1, self.conv2, self.relu2, self.pool2]
        self.layers += [self.flatten, self.linear1, self.relu3, self.linear2]

    def forward(self, x: Array) -> Array:
        """Pictures (N, C, H, W) to predictions (N, num_classes)."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, grad_output: Array) -> None:
        """From the last layer to the first, each computes the gradient of its input for the layer before it."""
        for layer in reversed(self.layers):
            grad_output = layer.backward(grad_output)

    def parameters(self) -> dict[str, tuple[Array, Any]]:
        """Each parameter and its gradient, by the names of torch's ``state_dict``."""
        found = {}
        for name in ("conv1", "conv2", "linear1", "linear2"):
            layer = getattr(self, name)
            found[f"{name}.weight"] = (layer.weights, getattr(layer, "grad_weights", None))
            found[f"{name}.bias"] = (layer.bias, getattr(layer, "grad_bias", None))
        return found

    def state_dict(self) -> dict[str, Array]:
        """The parameters by name."""
        return {name: parameter for name, (parameter, _) in self.parameters().items()}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Set the parameters."""
        for name, value in state.items():
            layer, _, kind = name.partition(".")
            setattr(getattr(self, layer), "weights" if kind == "weight" else "bias", value)


def initial(shape: tuple[int, ...], seed: Any) -> tuple[Array, Array]:
    """Weights and bias, uniform within 1 / sqrt(inputs of a unit), as torch draws them."""
    random, bound = np.random.default_rng(seed), 1 / np.sqrt(np.prod(shape[1:]))
    drawn = random.uniform(-bound, bound, shape), random.uniform(-bound, bound, shape[0])
    return drawn[0].astype(np.float32), drawn[1].astype(np.float32)


def cross_entropy_loss(predictions: Array, targets: Array) -> tuple[float, Array]:
    """The mean over the batch of -log softmax(predictions)[target], and its gradient."""
    mean = loss.cross_entropy(predictions, targets)
    return float(mean), loss.cross_entropy_backward(np.ones_like(mean), predictions, targets)


def use_fast_functions() -> None:
    """Replace the formulas by the functions of the same names in `ops.fast`."""
    global activation, conv, linear, loss, pool
    from cnn_lightning.ops.fast import activation, conv, linear, loss, pool


class SGD:
    """Gradient descent with momentum."""

    def __init__(self, lr: float, momentum: float = 0.9) -> None:
        self.lr, self.momentum = lr, momentum
        self.velocity: dict[str, Array] = {}

    def step(self, model: SimpleCNN) -> None:
        """``v = momentum v + gradient; parameter -= lr v``."""
        for name, (parameter, gradient) in model.parameters().items():
            self.velocity[name] = self.momentum * self.velocity.get(name, 0) + gradient
            parameter -= self.lr * self.velocity[name]


class Adam:
    """Steps of about ``lr``, whatever the size of the gradient (Kingma and Ba, https://arxiv.org/abs/1412.6980)."""

    def __init__(self, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.lr, self.betas, self.eps, self.steps = lr, betas, eps, 0
        self.mean: dict[str, Array] = {}
        self.square: dict[str, Array] = {}

    def step(self, model: SimpleCNN) -> None:
        """``parameter -= lr mean / (sqrt(square) + eps)``, both corrected for their start at zero."""
        self.steps += 1
        a, b = self.betas
        for name, (parameter, gradient) in model.parameters().items():
            self.mean[name] = a * self.mean.get(name, 0) + (1 - a) * gradient
            self.square[name] = b * self.square.get(name, 0) + (1 - b) * gradient**2
            mean, square = self.mean[name] / (1 - a**self.steps), self.square[name] / (1 - b**self.steps)
            parameter -= self.lr * mean / (np.sqrt(square) + self.eps)


def accuracy(model: SimpleCNN, split: images.Pictures) -> float:
    """The fraction of pictures whose largest prediction is at the true class."""
    pictures, labels = split
    right = 0
    for start in range(0, len(labels), 500):
        predictions = model.forward(pictures[start : start + 500])
        right += int((predictions.argmax(1) == labels[start : start + 500]).sum())
    return right / len(labels)


def train(args: Sequence[str] | None = None) -> list[float]:
    """Train as the flags say, and return the loss of every step."""
    options = flags.parse("train_numpy", __doc__, args)
    if options.device != "cpu":
        raise UserError(f"--device: expected cpu, where NumPy's arrays are, got {options.device}")
    if options.fast:
        use_fast_functions()
    data = images.read(options.data, options.root, options.dtype)
    model = SimpleCNN(data.in_channels, data.image_size, data.num_classes, options.seed)
    state = model.state_dict()
    if options.weights is not None:
        state = weights.load(options.weights, {name: value.shape for name, value in state.items()})
    model.load_state_dict({name: value.astype(options.dtype) for name, value in state.items()})
    optimizer = {"sgd": SGD, "adam": Adam}[options.optimizer](options.lr)
    losses: list[float] = []
    # BLAS on one thread, since a second thread gains nothing in a network this small. A step, on two cores
    # that had other work too: digits, 32 pictures, 7 ms with one thread, 32 with two; MNIST, 64 pictures, 91 and 277.
    with threadpool_limits(limits=1, user_api="blas"):
        for epoch in range(options.epochs):
            start, steps = time.perf_counter(), len(losses)
            batches = images.Batches(data.train, options.batch_size, options.seed, epoch)
            for pictures, labels in flags.progress(batches, epoch):
                predictions = model.forward(pictures)
                value, grad = cross_entropy_loss(predictions, labels)
                model.backward(grad)
                optimizer.step(model)
                losses.append(value)
            mean, seconds = sum(losses[steps:]) / len(batches), time.perf_counter() - start
            print(f"epoch {epoch + 1}: loss {mean:.4f}, val_acc {accuracy(model, data.val):.4f}, {seconds:.2f} s")
        print(f"test_acc: {accuracy(model, data.test):.4f}")
    if options.save is not None:
        weights.save(options.save, model.state_dict())
    return losses


if __name__ == "__main__":
    flags.run(train)
