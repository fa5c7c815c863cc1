"""How fast each implementation is on this machine."""
