"""Exercise 11: a whole network. Write its backward and a step of SGD.

    conv1  relu1  pool1  conv2  relu2  pool2  flatten  linear1  relu3  linear2

The layers are your functions of the exercises 1, 3, 4, 5 and 8. The forward
keeps what each layer got. The backward goes through the layers from the last
to the first: what one returns for its input is the grad_y of the one before.
SGD goes downhill: weight - lr * gradient.

Shapes: x (N, C, H, W) with H and W multiples of 4, target (N,), scores (N, 10).
weights is a dict; its keys are conv1.weight, conv1.bias, and so on for conv2,
linear1 and linear2.
"""

from ex01_relu import relu, relu_backward
from ex03_linear import linear, linear_backward
from ex04_cross_entropy import cross_entropy, cross_entropy_backward
from ex05_max_pool2d import max_pool2d, max_pool2d_backward
from ex08_stride_padding import conv2d, conv2d_backward


def parameters(weights, layer):
    """Give the weight and the bias of a layer."""
    return weights[layer + ".weight"], weights[layer + ".bias"]


def forward(x, weights):
    """Give the scores (N, 10), and a dict with the input of every layer."""
    inputs, same = {"conv1": x}, {"stride": 1, "padding": 1}
    inputs["relu1"] = conv2d(x, *parameters(weights, "conv1"), **same)
    inputs["pool1"] = relu(inputs["relu1"])
    inputs["conv2"] = max_pool2d(inputs["pool1"], kernel_size=2, stride=2)
    inputs["relu2"] = conv2d(
        inputs["conv2"],
        *parameters(weights, "conv2"),
        **same,
    )
    inputs["pool2"] = relu(inputs["relu2"])
    inputs["flatten"] = max_pool2d(inputs["pool2"], kernel_size=2, stride=2)
    inputs["linear1"] = inputs["flatten"].reshape(len(x), -1)
    inputs["relu3"] = linear(inputs["linear1"], *parameters(weights, "linear1"))
    inputs["linear2"] = relu(inputs["relu3"])
    return linear(inputs["linear2"], *parameters(weights, "linear2")), inputs


def loss_and_gradients(x, target, weights):
    """Give the loss, and a dict with the gradient of every weight."""
    scores, inputs = forward(x, weights)
    grad_scores = cross_entropy_backward(1.0, scores, target)
    return cross_entropy(scores, target), backward(grad_scores, inputs, weights)


def backward(grad_scores, inputs, weights):
    """Give a dict with the gradient of every weight, by the keys of weights."""
    raise NotImplementedError("write backward")


def sgd_step(weights, gradients, lr):
    """Give a dict with the new weights. Do not change the old ones."""
    raise NotImplementedError("write sgd_step")
