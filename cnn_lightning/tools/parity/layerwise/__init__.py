"""Copies of a network in lock-step, compared call by call, and which of them is wrong where they differ."""
