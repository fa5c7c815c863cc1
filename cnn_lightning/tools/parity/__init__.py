"""Two implementations of a network in lock-step: which of them is wrong, and in which layer."""

from cnn_lightning.tools.parity.candidates import Candidate as Candidate
from cnn_lightning.tools.parity.candidates import compiled as compiled
from cnn_lightning.tools.parity.lockstep import compare as compare
