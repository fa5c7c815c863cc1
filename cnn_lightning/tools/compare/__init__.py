"""The cost of NumPy and of Lightning, measured by four trainings."""
