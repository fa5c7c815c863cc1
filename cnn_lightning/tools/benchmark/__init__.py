"""The speed and memory of each implementation on this machine."""
