"""``python -m cnn_lightning`` is ``cnn-lightning``."""

import sys

from cnn_lightning.cli import main

sys.exit(main())
