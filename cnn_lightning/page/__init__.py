"""What the pages of all commands share: the look, and how a template becomes one file."""
