"""Grades a layer of your own: `check_layer`."""

from cnn_lightning.tools.check.grading import check_layer as check_layer
from cnn_lightning.tools.check.report import CheckReport as CheckReport
from cnn_lightning.tools.check.report import Finding as Finding
from cnn_lightning.tools.check.report import Grade as Grade
