"""`cnn_lightning.ops` as layers of torch: one ``autograd.Function`` and one ``Module`` per operation.

Each file has the name of the file of formulas that it calls: ``layers/conv.py`` calls ``ops/conv.py``. `catalog` lists
the layers.
"""

from cnn_lightning.layers import base, catalog
from cnn_lightning.layers import bridge as bridge
from cnn_lightning.layers import flops as flops
from cnn_lightning.layers.activation import *
from cnn_lightning.layers.attention import *
from cnn_lightning.layers.conv import *
from cnn_lightning.layers.dropout import *
from cnn_lightning.layers.fused import *
from cnn_lightning.layers.linear import *
from cnn_lightning.layers.loss import *
from cnn_lightning.layers.norm import *
from cnn_lightning.layers.padding import *
from cnn_lightning.layers.pool import *
from cnn_lightning.layers.response import *
from cnn_lightning.layers.shape import *
from cnn_lightning.layers.softmax import *
from cnn_lightning.layers.upsample import *

_listed = [entry.layer for entry in catalog.entries().values()]
_forgotten = [kind.__qualname__ for kind in base.Layer.__subclasses__() if kind not in _listed]
if _forgotten:
    raise ImportError(f"cnn_lightning.layers: expected @catalog.layer above each class, found none above {_forgotten}")

__all__ = ["Sequential", "bridge", *(kind.__name__ for kind in _listed)]
