"""Writes a trained network as ONNX, for torch.export, or as one file of NumPy."""
