"""The words of the field that the page uses, in short plain definitions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word, its definition, and what stands for it in a text.

    Args:
        name: The word.
        meaning: One or two sentences.
        pattern: A regular expression that both Python and JavaScript read, without regard to upper and lower case.
    """

    name: str
    meaning: str
    pattern: str


WORDS = (
    Word("batch", "Pictures whose gradients are averaged for one step.", "batch(?:es)?"),
    Word("bias", "A number that is added to every output of a channel. It is learned.", "bias(?:es)?"),
    Word(
        "central difference",
        "A gradient without any formula: the loss with a number made a little larger, minus the loss with it made a "
        "little smaller, divided by the distance.",
        "central differences?",
    ),
    Word(
        "channel",
        "One map of numbers among several of the same size: a colour of a picture, or what one kernel gives.",
        "channels?",
    ),
    Word(
        "convolution",
        "A layer that slides small kernels over its input. Each output is a weighted sum of the pixels "
        "under the kernel.",
        "convolutions?",
    ),
    Word(
        "cross-entropy",
        "The loss of a classifier: minus the logarithm of the probability that it gives to the true class.",
        "cross-?entropy(?:loss)?",
    ),
    Word("dilation", "The step between the pixels under a kernel: with 2, every second pixel is used.", "dilation"),
    Word("epoch", "One pass over all training pictures.", "epochs?"),
    Word("feature map", "What one channel of a layer gives for a picture.", "(?:feature )?maps?"),
    Word(
        "filter",
        "The weights of a convolution that make one output channel: a kernel for each input channel.",
        "filters?",
    ),
    Word("flatten", "To write all numbers of the maps one after the other, row by row.", "flatten"),
    Word("FLOPs", "The number of additions and multiplications: a measure of work.", "flops"),
    Word(
        "Grad-CAM", "A picture of where a network looked for a class, by the gradients of its last maps.", "grad-?cam"
    ),
    Word(
        "gradient",
        "By how much the loss grows for each unit by which a number grows. Training moves each weight "
        "against its gradient.",
        "gradients?",
    ),
    Word("kernel", "The small window of weights that a convolution slides over its input.", "kernels?"),
    Word("learning rate", "How far a step moves the weights: it multiplies the gradient.", "learning rates?"),
    Word("logit", "The output of the network for one class, before it becomes a probability.", "logits?"),
    Word("loss", "One number that says how wrong the prediction is. Training makes it small.", "loss"),
    Word("max-pooling", "A layer that keeps the largest number of each window.", "max-?pool(?:ing|2d)?"),
    Word("padding", "Zeros around the input, so that the kernel can reach over the border.", "padding"),
    Word("parameters", "The numbers that training changes: weights and biases.", "parameters?"),
    Word("probability", "A number from 0 to 1 for each class; all of them sum to 1.", "probabilit(?:y|ies)"),
    Word("receptive field", "The part of the picture that a number depends on.", "receptive fields?"),
    Word("ReLU", "A layer that sets negative numbers to 0 and keeps the others.", "relu"),
    Word("SGD", "Stochastic gradient descent: each step subtracts the learning rate times the gradient.", "sgd"),
    Word(
        "softmax",
        "e to the power of each logit, divided by the sum of these over all classes: probabilities.",
        "softmax",
    ),
    Word("stride", "The step from one window to the next.", "strides?"),
    Word("tap", "One place of a kernel, and the pixels that lie under it.", "taps?"),
    Word("term", "One of the numbers that are added in a sum.", "terms?"),
    Word(
        "upstream gradient",
        "The gradient of the loss by the output of a layer. It comes from the layers after it.",
        "upstream gradients?",
    ),
    Word("weight", "A number that an input is multiplied by. It is learned.", "weights?"),
)

_UNSEEN = re.compile(r"<(script|style|pre|math|svg)\b.*?</\1>|<[^>]*>", re.DOTALL)


def used(page: str) -> Sequence[Word]:
    """The words that stand in the text of a page of HTML, in alphabetical order; code and formulas do not count."""
    text = _UNSEEN.sub(" ", page)
    return [word for word in WORDS if re.search(rf"\b(?:{word.pattern})\b", text, re.IGNORECASE)]
