"""The torch faces of `cnn_lightning.ops`: one ``autograd.Function`` and one ``Module`` per operation."""
