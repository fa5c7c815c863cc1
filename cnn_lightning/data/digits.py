"""scikit-learn's handwritten digits: real pictures, shipped with that package."""

from cnn_lightning.data.base import InMemory
from cnn_lightning.data.loader import Augment, Sampler
from cnn_lightning.data.readers import DIGITS_MEAN, DIGITS_STD, ImageSet, read_digits


class Digits(InMemory):
    """1,797 grey pictures of 8x8 pixels in 10 classes; the split is fixed.

    Args:
        batch_size: Pictures in a batch of one process.
        seed: Seed of the order of samples and of the augmentation.
        augment: Shift training pictures by up to two pixels (a quarter of their width: off by default). "rand" and
            "trivial" change them also by torchvision's RandAugment and TrivialAugmentWide.
        predict_dir: A folder of unlabelled pictures for ``predict``, instead of the test split.
        sampler: "shuffled" trains with each picture once an epoch, "balanced" with as many that are drawn with
            replacement, every class equally likely.
        mixup: The alpha of mixup, such as 0.2; with ``cutmix`` too, each batch takes one of them.
        cutmix: The alpha of cutmix, such as 1.
    """

    num_classes, in_channels, image_size = 10, 1, 8
    class_names = tuple("0123456789")
    mean, std = DIGITS_MEAN, DIGITS_STD

    def __init__(
        self,
        batch_size: int = 32,
        seed: int = 0,
        augment: bool | Augment = False,
        predict_dir: str | None = None,
        sampler: Sampler = "shuffled",
        mixup: float | None = None,
        cutmix: float | None = None,
    ) -> None:
        super().__init__(
            batch_size, seed, augment, predict_dir=predict_dir, sampler=sampler, mixup=mixup, cutmix=cutmix
        )

    def read(self) -> ImageSet:
        """Read them from scikit-learn's package."""
        return read_digits(known=self.known)
