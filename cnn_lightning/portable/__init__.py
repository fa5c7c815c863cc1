"""A trained network as one file that needs NumPy alone: it predicts, lists its layers, and goes on training.

``cnn-lightning export --format numpy`` copies these files into the archive, beside the formulas of `cnn_lightning.ops`.
"""
