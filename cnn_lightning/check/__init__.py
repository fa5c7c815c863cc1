"""Grade a layer of one's own: `check_layer`."""

from cnn_lightning.check.grading import check_layer as check_layer
from cnn_lightning.check.report import CheckReport as CheckReport
from cnn_lightning.check.report import Finding as Finding
from cnn_lightning.check.report import Grade as Grade
