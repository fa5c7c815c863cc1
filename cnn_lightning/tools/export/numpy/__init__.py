"""Writes a trained network as one file that needs NumPy alone."""
