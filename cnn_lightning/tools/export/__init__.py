"""Writes a trained network as ONNX or as a torch.export program."""
