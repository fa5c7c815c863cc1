"""A right solution of each exercise, as a student writes it."""

SOLUTIONS = {
    1: """
        def relu_backward(grad_y, x):
            return grad_y * (x > 0)
    """,
    2: """
        def sigmoid(x):
            return 1 / (1 + np.exp(-x))

        def sigmoid_backward(grad_y, y):
            return grad_y * y * (1 - y)
    """,
    3: """
        def linear_backward(grad_y, x, weight):
            return grad_y @ weight, grad_y.T @ x, grad_y.sum(axis=0)
    """,
    4: """
        def softmax(logits):
            e = np.exp(logits - logits.max(axis=1, keepdims=True))
            return e / e.sum(axis=1, keepdims=True)

        def cross_entropy_backward(grad_y, logits, target):
            p = softmax(logits)
            p[np.arange(len(target)), target] -= 1
            return grad_y * p / len(target)
    """,
    5: """
        def max_pool2d_backward(grad_y, x, kernel_size, stride):
            grad_x = np.zeros_like(x)
            n, c = x.shape[:2]
            for u, v in np.ndindex(*grad_y.shape[2:]):
                rows = slice(u * stride, u * stride + kernel_size)
                columns = slice(v * stride, v * stride + kernel_size)
                flat = x[:, :, rows, columns].reshape(n, c, kernel_size**2)
                won = np.arange(flat.shape[2]) == flat.argmax(axis=2)[:, :, None]
                part = won * grad_y[:, :, u, v, None]
                grad_x[:, :, rows, columns] += part.reshape(n, c, kernel_size, kernel_size)
            return grad_x
    """,
    6: """
        def conv2d(x, weight, bias):
            o, _, kh, kw = weight.shape
            rows, columns = x.shape[2] - kh + 1, x.shape[3] - kw + 1
            y = np.zeros((len(x), o, rows, columns), x.dtype)
            for i in range(kh):
                for j in range(kw):
                    pixels = x[:, :, i : i + rows, j : j + columns]
                    y += np.einsum("oc,nchw->nohw", weight[:, :, i, j], pixels, optimize=True)
            return y + bias[:, None, None]
    """,
    7: """
        def conv2d_backward(grad_y, x, weight):
            grad_x, grad_weight = np.zeros_like(x), np.zeros_like(weight)
            rows, columns = grad_y.shape[2:]
            for i, j in np.ndindex(*weight.shape[2:]):
                place = slice(None), slice(None), slice(i, i + rows), slice(j, j + columns)
                grad_weight[:, :, i, j] = np.einsum("nohw,nchw->oc", grad_y, x[place], optimize=True)
                grad_x[place] += np.einsum("oc,nohw->nchw", weight[:, :, i, j], grad_y, optimize=True)
            return grad_x, grad_weight, grad_y.sum(axis=(0, 2, 3))
    """,
    8: """
        def conv2d_backward(grad_y, x, weight, stride, padding):
            wide = padded(x, padding)
            grad_wide, grad_weight = np.zeros_like(wide), np.zeros_like(weight)
            rows, columns = grad_y.shape[2:]
            for i, j in np.ndindex(*weight.shape[2:]):
                r, c = under(i, j, rows, columns, stride)
                grad_weight[:, :, i, j] = np.einsum("nohw,nchw->oc", grad_y, wide[:, :, r, c], optimize=True)
                grad_wide[:, :, r, c] += np.einsum("oc,nohw->nchw", weight[:, :, i, j], grad_y, optimize=True)
            inside = slice(padding, padding + x.shape[2]), slice(padding, padding + x.shape[3])
            return grad_wide[:, :, *inside], grad_weight, grad_y.sum(axis=(0, 2, 3))
    """,
    9: """
        def avg_pool2d_backward(grad_y, x, kernel_size):
            return grad_y.repeat(kernel_size, axis=2).repeat(kernel_size, axis=3) / kernel_size**2

        def dropout(x, keep, p):
            return x * keep / (1 - p)

        def dropout_backward(grad_y, keep, p):
            return grad_y * keep / (1 - p)
    """,
    10: """
        def batch_norm(x, weight, bias, mean=None, var=None, eps=1e-5):
            mean = x.mean(axis=(0, 2, 3)) if mean is None else mean
            var = x.var(axis=(0, 2, 3)) if var is None else var
            xhat = (x - mean[:, None, None]) / np.sqrt(var[:, None, None] + eps)
            y = weight[:, None, None] * xhat + bias[:, None, None]
            return y.astype(x.dtype), mean, var

        def running_statistics(running_mean, running_var, mean, var, count, momentum):
            unbiased = var * count / (count - 1)
            mean = (1 - momentum) * running_mean + momentum * mean
            return mean, (1 - momentum) * running_var + momentum * unbiased

        def batch_norm_backward(grad_y, x, weight, mean, var, eps=1e-5):
            root = np.sqrt(var[:, None, None] + eps)
            xhat = (x - mean[:, None, None]) / root
            g = grad_y * weight[:, None, None]
            g_mean = g.mean(axis=(0, 2, 3), keepdims=True)
            gx_mean = (g * xhat).mean(axis=(0, 2, 3), keepdims=True)
            grad_x = (g - g_mean - xhat * gx_mean) / root
            grad_weight = (grad_y * xhat).sum(axis=(0, 2, 3))
            grad_bias = grad_y.sum(axis=(0, 2, 3))
            return grad_x.astype(x.dtype), grad_weight.astype(x.dtype), grad_bias
    """,
    11: """
        def backward(grad_scores, inputs, weights):
            found = {}

            def keep(name, grad_weight, grad_bias):
                found[name + ".weight"], found[name + ".bias"] = grad_weight, grad_bias

            grad, *own = linear_backward(grad_scores, inputs["linear2"], weights["linear2.weight"])
            keep("linear2", *own)
            grad = relu_backward(grad, inputs["relu3"])
            grad, *own = linear_backward(grad, inputs["linear1"], weights["linear1.weight"])
            keep("linear1", *own)
            grad = grad.reshape(inputs["flatten"].shape)
            for number in ("2", "1"):
                grad = max_pool2d_backward(grad, inputs["pool" + number], kernel_size=2, stride=2)
                grad = relu_backward(grad, inputs["relu" + number])
                x, weight = inputs["conv" + number], weights["conv" + number + ".weight"]
                grad, *own = conv2d_backward(grad, x, weight, stride=1, padding=1)
                keep("conv" + number, *own)
            return found

        def sgd_step(weights, gradients, lr):
            return {name: weights[name] - lr * gradients[name] for name in weights}
    """,
    12: """
        def conv2d_blocks(x, weight, bias, block):
            o, _, kh, kw = weight.shape
            y = np.empty((len(x), o, x.shape[2] - kh + 1, x.shape[3] - kw + 1), x.dtype)
            for start in range(0, len(x), block):
                y[start : start + block] = conv2d_whole(x[start : start + block], weight, bias)
            return y
    """,
}
