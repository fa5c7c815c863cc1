"""The same training with no Lightning at all: once in NumPy, once in torch."""
