"""Exercises 1 and 2: functions of each element by itself."""

import numpy as np

from cnn_lightning.ops import activation
from cnn_lightning.tools.learn.course.exercise import Case, Exercise, Suspect, Task, Training, X, random, whole

_IMAGES = Case({"x": random(1, 4, 3, 5, 5)})
_TIES = Case({"x": whole(2, -1, 1, 3, 4, 4)}, rule="ties", label="where x is 0")

RELU = Exercise(
    number=1,
    stem="ex01_relu",
    title="ReLU: what passes, and what does not",
    write=("relu_backward",),
    tasks=(
        Task("relu", activation.relu, ("the output",), (_IMAGES,)),
        Task(
            "relu_backward",
            activation.relu_backward,
            (X,),
            (_IMAGES, _TIES),
            (
                Suspect(
                    0,
                    "lacks the mask: it is grad_y also where x <= 0",
                    "where x <= 0, the output does not change with x, so nothing passes there",
                    lambda grad_y, x: grad_y,
                ),
                Suspect(
                    0,
                    "lacks the factor grad_y: it is the slope of ReLU alone",
                    "chain rule: the gradient by the input is the gradient by the output times the slope",
                    lambda grad_y, x: (x > 0) * 1.0,
                ),
                Suspect(
                    0,
                    "has the mask of grad_y, not that of x",
                    "what passes depends on the sign of x, the input of the forward",
                    lambda grad_y, x: np.maximum(grad_y, 0),
                ),
                Suspect(
                    0,
                    "has the mask the wrong way round: it passes where x < 0",
                    "what passes is grad_y where x > 0",
                    lambda grad_y, x: np.where(x < 0, grad_y, 0),
                ),
                Suspect(
                    0,
                    "has x and grad_y swapped: it is x where grad_y > 0",
                    "what passes is grad_y; where it passes, x decides",
                    lambda grad_y, x: np.where(grad_y > 0, x, 0),
                ),
                Suspect(
                    0,
                    "is multiplied by x: that is the output, not the slope",
                    "the slope of ReLU is 1 where x > 0, not x",
                    lambda grad_y, x: grad_y * np.maximum(x, 0),
                ),
                Suspect(
                    0,
                    "passes at x = 0, where the mask must be 0",
                    "at 0 both slopes are possible; torch and this project take 0: > and >= differ exactly here",
                    lambda grad_y, x: np.where(x >= 0, grad_y, 0),
                ),
            ),
            forward="relu",
            forward_formula=activation.relu,
            saved=("x",),
        ),
    ),
    hints=(
        "By how much does y change if x grows a little: where x > 0, and where x < 0?",
        "The slope is 1 where x > 0 and 0 elsewhere. Multiply grad_y by it, element by element.",
        "np.where(condition, a, b) takes a where the condition holds, else b. The condition is x > 0.",
    ),
    training=Training({"relu*": "ReLU"}, check="--reference torch.nn.ReLU"),
)

_LARGE = Case(
    {"x": np.array([-1000.0, -1.0, 0.0, 1.0, 1000.0])}, rule="large numbers", label="for x from -1000 to 1000"
)

SIGMOID = Exercise(
    number=2,
    stem="ex02_sigmoid",
    title="Sigmoid: a gradient from the output",
    write=("sigmoid", "sigmoid_backward"),
    tasks=(
        Task(
            "sigmoid",
            activation.sigmoid,
            ("the output",),
            (_IMAGES, _LARGE),
            (
                Suspect(
                    0,
                    "has the wrong sign in the exponential: it falls where x grows",
                    "the exponent is -x",
                    lambda x: 1 / (1 + np.exp(x)),
                ),
                Suspect(
                    0,
                    "has the wrong sign in the denominator: it is 1 - exp(-x)",
                    "the denominator is 1 + exp(-x)",
                    lambda x: 1 / (1 - np.exp(-x)),
                ),
                Suspect(
                    0,
                    "is NaN for large x: exp(1000) is infinite, and infinite / infinite is NaN",
                    "write it with exp(-x), once, in the denominator",
                    lambda x: np.exp(x) / (1 + np.exp(x)),
                ),
            ),
        ),
        Task(
            "sigmoid_backward",
            activation.sigmoid_backward,
            (X,),
            (_IMAGES,),
            (
                Suspect(
                    0,
                    "lacks the factor grad_y: it is the slope y (1 - y) alone",
                    "chain rule: the gradient by the input is the gradient by the output times the slope",
                    lambda grad_y, y: y * (1 - y),
                ),
                Suspect(
                    0,
                    "takes the sigmoid of y: but y is the output already, not the input",
                    "use y as it is: the slope is y (1 - y)",
                    lambda grad_y, y: grad_y / (1 + np.exp(-y)) * (1 - 1 / (1 + np.exp(-y))),
                ),
                Suspect(
                    0,
                    "lacks the factor 1 - y",
                    "derive 1 / (1 + exp(-x)): the slope has two factors, y and 1 - y",
                    lambda grad_y, y: grad_y * y,
                ),
                Suspect(
                    0,
                    "lacks the factor y",
                    "derive 1 / (1 + exp(-x)): the slope has two factors, y and 1 - y",
                    lambda grad_y, y: grad_y * (1 - y),
                ),
                Suspect(
                    0,
                    "is that of tanh, 1 - y^2",
                    "the slope of a sigmoid is y (1 - y)",
                    lambda grad_y, y: grad_y * (1 - y**2),
                ),
            ),
            forward="sigmoid",
            forward_formula=activation.sigmoid,
            saved=("y",),
        ),
    ),
    hints=(
        "Derive 1 / (1 + exp(-x)) by x. Then find y in what you got.",
        "dy/dx = exp(-x) / (1 + exp(-x))^2. One factor is y; the other is 1 - y.",
        "grad_x = grad_y * y * (1 - y).",
    ),
    training=Training({"relu3": "Sigmoid"}, check="--reference torch.sigmoid"),
)
