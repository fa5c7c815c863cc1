"""Trials of ``fit`` with options from a search space, chosen by Optuna."""
