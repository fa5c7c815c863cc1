"""Two implementations of a network in lock-step."""
