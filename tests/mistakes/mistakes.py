"""Typical mistakes of students: the wrong functions, and words that the finding must have."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """A wrong solution.

    Attributes:
        number: The exercise.
        name: The mistake in a few words.
        code: Functions that replace those of the right solution.
        rule: The rule that finds it.
        words: What the finding must say.
    """

    number: int
    name: str
    code: str
    rule: str
    words: tuple[str, ...]


_CONV_BACKWARD = """
    def conv2d_backward(grad_y, x, weight):
        grad_x, grad_weight = np.zeros_like(x), np.zeros_like(weight)
        rows, columns = grad_y.shape[2:]
        for i, j in np.ndindex(*weight.shape[2:]):
            place = slice(None), slice(None), slice(i, i + rows), slice(j, j + columns)
            grad_weight[:, :, i, j] = np.einsum("nohw,nchw->oc", grad_y, x[place])
            grad_x[place] += np.einsum("oc,nohw->nchw", weight[:, :, i, j], grad_y)
        return grad_x, grad_weight, grad_y.sum(axis=(0, 2, 3))
"""
_STRIDED_BACKWARD = """
    def conv2d_backward(grad_y, x, weight, stride, padding):
        wide = padded(x, padding)
        grad_wide, grad_weight = np.zeros_like(wide), np.zeros_like(weight)
        rows, columns = grad_y.shape[2:]
        for i, j in np.ndindex(*weight.shape[2:]):
            r, c = under(i, j, rows, columns, stride)
            grad_weight[:, :, i, j] = np.einsum("nohw,nchw->oc", grad_y, wide[:, :, r, c])
            grad_wide[:, :, r, c] += np.einsum("oc,nohw->nchw", weight[:, :, i, j], grad_y)
        height, width = x.shape[2:]
        grad_x = grad_wide[:, :, padding : padding + height, padding : padding + width]
        return grad_x, grad_weight, grad_y.sum(axis=(0, 2, 3))
"""
_MAX_POOL_BACKWARD = """
    def max_pool2d_backward(grad_y, x, kernel_size, stride):
        grad_x = np.zeros_like(x)
        for u, v in np.ndindex(*grad_y.shape[2:]):
            rows = slice(u * stride, u * stride + kernel_size)
            columns = slice(v * stride, v * stride + kernel_size)
            window = x[:, :, rows, columns]
            flat = window.reshape(*x.shape[:2], -1)
            first = (np.arange(flat.shape[2]) == flat.argmax(axis=2)[:, :, None]).reshape(window.shape)
            grad_x[:, :, rows, columns] += first * grad_y[:, :, u, v, None, None]
        return grad_x
"""
_BATCH_NORM = """
    def batch_norm(x, weight, bias, mean=None, var=None, eps=1e-5):
        mean = x.mean(axis=(0, 2, 3)) if mean is None else mean
        var = x.var(axis=(0, 2, 3)) if var is None else var
        xhat = (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + eps)
        return weight[:, None, None] * xhat + bias[:, None, None], mean, var
"""
_BATCH_NORM_BACKWARD = """
    def batch_norm_backward(grad_y, x, weight, mean, var, eps=1e-5):
        root = np.sqrt(var[:, None, None] + eps)
        xhat = (x - mean[:, None, None]) / root
        g = grad_y * weight[:, None, None]
        g_mean = g.mean(axis=(0, 2, 3), keepdims=True)
        gx_mean = (g * xhat).mean(axis=(0, 2, 3), keepdims=True)
        grad_x = (g - g_mean - xhat * gx_mean) / root
        return grad_x, (grad_y * xhat).sum(axis=(0, 2, 3)), grad_y.sum(axis=(0, 2, 3))
"""


def _changed(code: str, right: str, wrong: str) -> str:
    """Code with one line changed."""
    assert code.count(right) == 1, right
    return code.replace(right, wrong)


MISTAKES = [
    Mistake(
        1,
        "no mask",
        """
        def relu_backward(grad_y, x):
            return grad_y.copy()
        """,
        "gradient",
        ("lacks the mask",),
    ),
    Mistake(
        1,
        "the slope without the upstream gradient",
        """
        def relu_backward(grad_y, x):
            return np.where(x > 0, 1.0, 0.0)
        """,
        "gradient",
        ("lacks the factor grad_y",),
    ),
    Mistake(
        1,
        "the mask of the gradient",
        """
        def relu_backward(grad_y, x):
            return np.maximum(grad_y, 0)
        """,
        "gradient",
        ("mask of grad_y, not that of x",),
    ),
    Mistake(
        1,
        "greater or equal",
        """
        def relu_backward(grad_y, x):
            return grad_y * (x >= 0)
        """,
        "ties",
        ("at x = 0",),
    ),
    Mistake(
        1,
        "in place",
        """
        def relu_backward(grad_y, x):
            grad_y[x <= 0] = 0
            return grad_y
        """,
        "inputs unwritten",
        ("writes into its argument 'grad_y'",),
    ),
    Mistake(
        2,
        "the output taken for the input",
        """
        def sigmoid_backward(grad_y, y):
            s = sigmoid(y)
            return grad_y * s * (1 - s)
        """,
        "gradient",
        ("y is the output already",),
    ),
    Mistake(
        2,
        "exp(x) that overflows",
        """
        def sigmoid(x):
            return np.exp(x) / (1 + np.exp(x))
        """,
        "large numbers",
        ("NaN for large x", "exp(1000) is infinite"),
    ),
    Mistake(
        3,
        "the weight transposed",
        """
        def linear_backward(grad_y, x, weight):
            return grad_y @ weight.T, grad_y.T @ x, grad_y.sum(axis=0)
        """,
        "gradient",
        ("input 'x'", "the weight must not be transposed"),
    ),
    Mistake(
        3,
        "the gradient of the weight transposed",
        """
        def linear_backward(grad_y, x, weight):
            return grad_y @ weight, x.T @ grad_y, grad_y.sum(axis=0)
        """,
        "gradient",
        ("parameter 'weight'", "is transposed"),
    ),
    Mistake(
        3,
        "no sum over the batch for the bias",
        """
        def linear_backward(grad_y, x, weight):
            return grad_y @ weight, grad_y.T @ x, grad_y
        """,
        "gradient",
        ("parameter 'bias'", "lacks the sum over the batch"),
    ),
    Mistake(
        3,
        "a mean for the bias",
        """
        def linear_backward(grad_y, x, weight):
            return grad_y @ weight, grad_y.T @ x, grad_y.mean(axis=0)
        """,
        "gradient",
        ("parameter 'bias'", "divided by N"),
    ),
    Mistake(
        4,
        "no maximum subtracted",
        """
        def softmax(logits):
            e = np.exp(logits)
            return e / e.sum(axis=1, keepdims=True)
        """,
        "large numbers",
        ("exp overflows", "maximum of the row is not subtracted"),
    ),
    Mistake(
        4,
        "the wrong axis of the softmax",
        """
        def softmax(logits):
            e = np.exp(logits - logits.max())
            return e / e.sum(axis=0)
        """,
        "values",
        ("over the wrong axis",),
    ),
    Mistake(
        4,
        "no 1/N",
        """
        def cross_entropy_backward(grad_y, logits, target):
            p = softmax(logits)
            p[np.arange(len(target)), target] -= 1
            return grad_y * p
        """,
        "gradient",
        ("lacks the factor 1/N",),
    ),
    Mistake(
        4,
        "1/N twice",
        """
        def cross_entropy_backward(grad_y, logits, target):
            n = len(target)
            p = softmax(logits) / n
            p[np.arange(n), target] -= 1 / n
            return grad_y * p / n
        """,
        "gradient",
        ("divided by N twice",),
    ),
    Mistake(
        4,
        "truth minus probability",
        """
        def cross_entropy_backward(grad_y, logits, target):
            onehot = np.eye(logits.shape[1])[target]
            return grad_y * (onehot - softmax(logits)) / len(target)
        """,
        "gradient",
        ("wrong sign", "truth minus probability"),
    ),
    Mistake(
        4,
        "no truth subtracted",
        """
        def cross_entropy_backward(grad_y, logits, target):
            return grad_y * softmax(logits) / len(target)
        """,
        "gradient",
        ("lacks the - 1 at the target",),
    ),
    Mistake(
        5,
        "to the whole window",
        _changed(_MAX_POOL_BACKWARD, "first * grad_y", "np.ones_like(window) * grad_y"),
        "gradient",
        ("to the whole window", "not to the pixel that won"),
    ),
    Mistake(
        5,
        "to all that are equal",
        _changed(_MAX_POOL_BACKWARD, "first * grad_y", "(window == window.max(axis=(2, 3), keepdims=True)) * grad_y"),
        "ties",
        ("of equal pixels the first alone wins",),
    ),
    Mistake(
        5,
        "overwritten where windows overlap",
        _changed(_MAX_POOL_BACKWARD, "columns] += first", "columns] = first"),
        "gradient",
        ("overwritten where windows overlap",),
    ),
    Mistake(
        5,
        "float64 for float32",
        _changed(_MAX_POOL_BACKWARD, "np.zeros_like(x)", "np.zeros(x.shape)"),
        "dtype",
        ("float64 for inputs in float32",),
    ),
    Mistake(
        6,
        "the kernel flipped",
        """
        def conv2d(x, weight, bias):
            o, _, kh, kw = weight.shape
            rows, columns = x.shape[2] - kh + 1, x.shape[3] - kw + 1
            y = np.zeros((len(x), o, rows, columns), x.dtype)
            for i, j in np.ndindex(kh, kw):
                pixels = x[:, :, kh - 1 - i : kh - 1 - i + rows, kw - 1 - j : kw - 1 - j + columns]
                y += np.einsum("oc,nchw->nohw", weight[:, :, i, j], pixels)
            return y + bias[:, None, None]
        """,
        "values",
        ("kernel flipped",),
    ),
    Mistake(
        6,
        "seven loops, and the bias inside",
        """
        def conv2d(x, weight, bias):
            o, _, kh, kw = weight.shape
            y = np.zeros((len(x), o, x.shape[2] - kh + 1, x.shape[3] - kw + 1), x.dtype)
            for k, u, v in np.ndindex(*y.shape[1:]):
                for i, j in np.ndindex(kh, kw):
                    y[:, k, u, v] += x[:, :, u + i, v + j] @ weight[k, :, i, j] + bias[k]
            return y
        """,
        "values",
        ("bias once for each pixel of the kernel",),
    ),
    Mistake(
        7,
        "the kernel not flipped in a full convolution",
        """
        def conv2d_backward(grad_y, x, weight):
            kh, kw = weight.shape[2:]
            wide = np.pad(grad_y, ((0, 0), (0, 0), (kh - 1, kh - 1), (kw - 1, kw - 1)))
            grad_x = conv2d(wide, weight.swapaxes(0, 1), np.zeros(x.shape[1], x.dtype))
            grad_weight = np.zeros_like(weight)
            rows, columns = grad_y.shape[2:]
            for i, j in np.ndindex(kh, kw):
                grad_weight[:, :, i, j] = np.einsum(
                    "nohw,nchw->oc", grad_y, x[:, :, i : i + rows, j : j + columns]
                )
            return grad_x, grad_weight, grad_y.sum(axis=(0, 2, 3))
        """,
        "gradient",
        ("input 'x'", "kernel", "upside down"),
    ),
    Mistake(
        7,
        "overwritten where places of the kernel overlap",
        _changed(_CONV_BACKWARD, "grad_x[place] +=", "grad_x[place] ="),
        "gradient",
        ("input 'x'", "overwritten where"),
    ),
    Mistake(
        7,
        "no sum over the positions for the bias",
        _changed(_CONV_BACKWARD, "grad_y.sum(axis=(0, 2, 3))", "grad_y.sum(axis=0)"),
        "gradient",
        ("parameter 'bias'", "lacks the sum over the positions"),
    ),
    Mistake(
        7,
        "the weight's gradient of the last image",
        """
        def conv2d_backward(grad_y, x, weight):
            grad_x, grad_weight = np.zeros_like(x), np.zeros_like(weight)
            rows, columns = grad_y.shape[2:]
            for n in range(len(x)):
                for i, j in np.ndindex(*weight.shape[2:]):
                    pixels = x[n, :, i : i + rows, j : j + columns]
                    grad_weight[:, :, i, j] = np.einsum("ohw,chw->oc", grad_y[n], pixels)
                    grad_x[n, :, i : i + rows, j : j + columns] += np.einsum(
                        "oc,ohw->chw", weight[:, :, i, j], grad_y[n]
                    )
            return grad_x, grad_weight, grad_y.sum(axis=(0, 2, 3))
        """,
        "gradient",
        ("parameter 'weight'", "lacks the sum over the batch"),
    ),
    Mistake(
        8,
        "the border not cut off",
        _changed(
            _STRIDED_BACKWARD,
            "grad_wide[:, :, padding : padding + height, padding : padding + width]",
            "grad_wide",
        ),
        "gradient",
        ("input 'x'", "border of the padding still"),
    ),
    Mistake(
        8,
        "the border cut off at the end",
        _changed(
            _STRIDED_BACKWARD,
            "grad_wide[:, :, padding : padding + height, padding : padding + width]",
            "grad_wide[:, :, :height, :width]",
        ),
        "gradient",
        ("input 'x'", "shifted by the padding"),
    ),
    Mistake(
        8,
        "the stride ignored",
        _changed(_STRIDED_BACKWARD, "under(i, j, rows, columns, stride)", "under(i, j, rows, columns, 1)"),
        "gradient",
        ("ignores the stride",),
    ),
    Mistake(
        9,
        "no 1/k^2",
        """
        def avg_pool2d_backward(grad_y, x, kernel_size):
            return grad_y.repeat(kernel_size, axis=2).repeat(kernel_size, axis=3)
        """,
        "gradient",
        ("lacks the factor 1/k^2",),
    ),
    Mistake(
        9,
        "no 1/(1 - p)",
        """
        def dropout(x, keep, p):
            return x * keep
        """,
        "values",
        ("lacks the factor 1/(1 - p)",),
    ),
    Mistake(
        9,
        "no mask in the backward of dropout",
        """
        def dropout_backward(grad_y, keep, p):
            return grad_y / (1 - p)
        """,
        "gradient",
        ("lacks the mask",),
    ),
    Mistake(
        10,
        "mean and variance as constants",
        _changed(_BATCH_NORM_BACKWARD, "(g - g_mean - xhat * gx_mean) / root", "g / root"),
        "gradient",
        ("lacks the terms through the mean and the variance",),
    ),
    Mistake(
        10,
        "no term through the variance",
        _changed(_BATCH_NORM_BACKWARD, "g - g_mean - xhat * gx_mean", "g - g_mean"),
        "gradient",
        ("lacks the term through the variance",),
    ),
    Mistake(
        10,
        "the unbiased variance",
        _changed(_BATCH_NORM, "x.var(axis=(0, 2, 3))", "x.var(axis=(0, 2, 3), ddof=1)"),
        "values",
        ("unbiased variance",),
    ),
    Mistake(
        10,
        "eps outside of the root",
        _changed(_BATCH_NORM, "np.sqrt(var[:, None, None] + eps)", "(np.sqrt(var[:, None, None]) + eps)"),
        "values",
        ("eps outside of the root",),
    ),
    Mistake(
        10,
        "statistics of the batch in evaluation",
        _changed(
            _changed(_BATCH_NORM, " if mean is None else mean", ""),
            " if var is None else var",
            "",
        ),
        "evaluation",
        ("statistics of x, though mean and var are given",),
    ),
    Mistake(
        10,
        "the momentum swapped",
        """
        def running_statistics(running_mean, running_var, mean, var, count, momentum):
            var = var * count / (count - 1)
            mean = momentum * running_mean + (1 - momentum) * mean
            return mean, momentum * running_var + (1 - momentum) * var
        """,
        "values",
        ("running mean", "momentum swapped"),
    ),
    Mistake(
        10,
        "the biased variance in the average",
        """
        def running_statistics(running_mean, running_var, mean, var, count, momentum):
            mean = (1 - momentum) * running_mean + momentum * mean
            return mean, (1 - momentum) * running_var + momentum * var
        """,
        "values",
        ("running variance", "uses the biased variance"),
    ),
    Mistake(
        11,
        "uphill",
        """
        def sgd_step(weights, gradients, lr):
            return {name: weights[name] + lr * gradients[name] for name in weights}
        """,
        "values",
        ("wrong sign of the step",),
    ),
    Mistake(
        11,
        "the weights changed in place",
        """
        def sgd_step(weights, gradients, lr):
            for name in weights:
                weights[name] -= lr * gradients[name]
            return weights
        """,
        "inputs unwritten",
        ("writes into its argument 'weight'",),
    ),
    Mistake(
        11,
        "a ReLU left out",
        """
        def backward(grad_scores, inputs, weights, relu_backward_of=relu_backward):
            def relu_backward(grad, x):
                return grad if x is inputs["relu3"] else relu_backward_of(grad, x)

            found = {}
            grad, *found["linear2"] = linear_backward(grad_scores, inputs["linear2"], weights["linear2.weight"])
            grad = relu_backward(grad, inputs["relu3"])
            grad, *found["linear1"] = linear_backward(grad, inputs["linear1"], weights["linear1.weight"])
            grad = grad.reshape(inputs["flatten"].shape)
            for number in "21":
                grad = max_pool2d_backward(grad, inputs["pool" + number], 2, 2)
                grad = relu_backward(grad, inputs["relu" + number])
                weight = weights["conv" + number + ".weight"]
                grad, *found["conv" + number] = conv2d_backward(grad, inputs["conv" + number], weight, 1, 1)
            pairs = [(layer, zip(("weight", "bias"), both)) for layer, both in found.items()]
            return {layer + "." + kind: gradient for layer, both in pairs for kind, gradient in both}
        """,
        "values",
        ("parameter 'linear1.weight'", "lacks the mask of relu3"),
    ),
    Mistake(
        12,
        "the last block left out",
        """
        def conv2d_blocks(x, weight, bias, block):
            o, _, kh, kw = weight.shape
            y = np.zeros((len(x), o, x.shape[2] - kh + 1, x.shape[3] - kw + 1), x.dtype)
            for number in range(len(x) // block):
                some = slice(number * block, (number + 1) * block)
                y[some] = conv2d_whole(x[some], weight, bias)
            return y
        """,
        "values",
        ("lacks the last images", "not a multiple of block"),
    ),
    Mistake(
        12,
        "all columns at once",
        """
        def conv2d_blocks(x, weight, bias, block):
            return conv2d_whole(x, weight, bias)
        """,
        "memory",
        ("MB at its peak", "columns of more than one block"),
    ),
]
"""More than thirty; each is to be named by its own words."""
