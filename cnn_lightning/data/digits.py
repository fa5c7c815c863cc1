"""scikit-learn's handwritten digits: real pictures, shipped with that package."""

from cnn_lightning.data.base import InMemory
from cnn_lightning.data.loader import Sampler
from cnn_lightning.data.readers import DIGITS_MEAN, DIGITS_STD, ImageSet, read_digits


class Digits(InMemory):
    """1,797 grey pictures of 8x8 pixels in 10 classes; the split is fixed.

    Args:
        batch_size: Pictures in a batch of one process.
        seed: Seed of the order of samples and of the augmentation.
        augment: Shift training pictures by up to two pixels (a quarter of their width: off by default).
        predict_dir: A folder of unlabelled pictures for ``predict``, instead of the test split.
        sampler: "shuffled" trains with each picture once an epoch, "balanced" with as many that are drawn with
            replacement, every class equally likely.
    """

    num_classes, in_channels, image_size = 10, 1, 8
    class_names = tuple("0123456789")
    mean, std = DIGITS_MEAN, DIGITS_STD

    def __init__(
        self,
        batch_size: int = 32,
        seed: int = 0,
        augment: bool = False,
        predict_dir: str | None = None,
        sampler: Sampler = "shuffled",
    ) -> None:
        super().__init__(batch_size, seed, augment, predict_dir=predict_dir, sampler=sampler)

    def read(self) -> ImageSet:
        """Read them from scikit-learn's package."""
        return read_digits(known=self.known)
