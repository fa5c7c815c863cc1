"""What NumPy and Lightning cost, from four trainings."""
