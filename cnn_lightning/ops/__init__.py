"""The mathematics of a CNN: each operation a forward and, beside it, its backward, on NumPy arrays.

One file for a family of operations: ``from cnn_lightning.ops import conv``, then ``conv.conv2d``.
"""
