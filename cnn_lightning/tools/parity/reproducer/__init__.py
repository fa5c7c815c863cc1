"""A program of at most 30 lines that shows a fault alone, made as small as the fault allows."""

from cnn_lightning.tools.parity.reproducer.make import NoReproducer as NoReproducer
from cnn_lightning.tools.parity.reproducer.make import program as program
from cnn_lightning.tools.parity.reproducer.make import write as write
