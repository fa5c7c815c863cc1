"""The LightningModule that trains a network, its metrics and optimizer, and the options that checkpoints keep."""

from cnn_lightning.classifier.module import Classifier as Classifier
from cnn_lightning.classifier.module import from_checkpoint as from_checkpoint
from cnn_lightning.classifier.module import hyper_parameters as hyper_parameters
from cnn_lightning.classifier.options import NOT_KEPT as NOT_KEPT
