"""The commands for a network besides training, each in its own folder."""
