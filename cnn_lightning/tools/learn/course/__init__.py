"""The twelve exercises, in their order."""

from cnn_lightning.tools.learn.course.convolution import BACKWARD, BLOCKS, FORWARD, STRIDE_PADDING
from cnn_lightning.tools.learn.course.elementwise import RELU, SIGMOID
from cnn_lightning.tools.learn.course.network import SIMPLE_CNN
from cnn_lightning.tools.learn.course.norm import BATCH_NORM
from cnn_lightning.tools.learn.course.pooling import AVERAGE_DROPOUT, MAX_POOL
from cnn_lightning.tools.learn.course.rows import CROSS_ENTROPY, LINEAR

EXERCISES = {
    exercise.number: exercise
    for exercise in (
        RELU,
        SIGMOID,
        LINEAR,
        CROSS_ENTROPY,
        MAX_POOL,
        FORWARD,
        BACKWARD,
        STRIDE_PADDING,
        AVERAGE_DROPOUT,
        BATCH_NORM,
        SIMPLE_CNN,
        BLOCKS,
    )
}
