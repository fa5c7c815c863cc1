"""A network as a graph: what a run calls, in which order, and how that is laid out and drawn on a page."""
