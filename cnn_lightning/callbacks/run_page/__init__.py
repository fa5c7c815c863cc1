"""``index.html`` of a run: what a training did and does, on one page that needs no other file."""
