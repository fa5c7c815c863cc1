"""What one does with a network beside training it, a folder each, with its command."""
