"""The LightningModule that trains a network, what it measures, and what a checkpoint may tell it."""

from cnn_lightning.classifier.module import Classifier as Classifier
from cnn_lightning.classifier.module import from_checkpoint as from_checkpoint
from cnn_lightning.classifier.module import hyper_parameters as hyper_parameters
from cnn_lightning.classifier.options import NOT_KEPT as NOT_KEPT
