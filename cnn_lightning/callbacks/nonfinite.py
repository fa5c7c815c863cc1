"""`StopAtNonFinite` for ``--trainer.callbacks``, with any LightningModule; a `Classifier` always has it."""

from cnn_lightning.classifier.nonfinite import StopAtNonFinite as StopAtNonFinite
