"""What is said beside the results: one line each, on stderr, by the first of a run's processes."""

import sys

from lightning.pytorch.utilities import rank_zero_only


def tell(text: str) -> None:
    """Say one line, unless this is one of several processes and not the first."""
    if getattr(rank_zero_only, "rank", 0) == 0:
        print(f"cnn-lightning: {text}".replace("\n", "\\n"), file=sys.stderr)
