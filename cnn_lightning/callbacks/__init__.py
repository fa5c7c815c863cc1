"""What hooks into the Trainer: the report of layers, curves, pictures of results, and checkpoints to go on from."""
