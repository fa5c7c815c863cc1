"""The mathematics of a CNN on NumPy arrays: for each operation a forward, and its backward below it.

Each file has one family of operations: ``from cnn_lightning.ops import conv``, then ``conv.conv2d``.
"""
