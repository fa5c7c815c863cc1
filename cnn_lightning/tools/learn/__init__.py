"""Exercises: layers that the learner writes in NumPy, and a grader that names what is wrong."""

from cnn_lightning.tools.learn.grading import Report as Report
from cnn_lightning.tools.learn.grading import grade as grade
