"""A step that stopped a training because its loss or gradients were not finite, run again."""
