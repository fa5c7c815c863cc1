"""The operator of a step that made the first number that is not finite, and what in its inputs was the cause.

`search` runs a step again and looks at every operator of forward and backward. Operators that only pass NaN or infinity
on are never named, and an infinity that never reaches the loss or a gradient (a mask's, say) is none of its business.
"""

from cnn_lightning.nonfinite.finding import Finding as Finding
from cnn_lightning.nonfinite.search import search as search
