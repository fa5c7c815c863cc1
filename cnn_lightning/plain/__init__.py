"""The same training without Lightning: one program in NumPy, one in torch."""
