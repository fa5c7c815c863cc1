"""Notices: messages beside the results, one line each, on standard error, from the first process of a run alone."""

from cnn_lightning.processes import is_first
from cnn_lightning.streams import print_line


def tell(text: str) -> None:
    """Print a notice, if this is the first process or the only one."""
    if is_first():
        print_line(text)
