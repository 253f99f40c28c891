"""Training batches whose order and augmentation depend on the seed and the epoch alone.

A killed run that goes on at epoch e therefore sees what the undisturbed run would have seen.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfcompress.data.dataset import Data
from tfcompress.errors import require


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of training images, drawn anew for each image and epoch.

    `shift`: up to so many pixels along both axes, zeros move in. `flip`: left and right, with
    probability 1/2. `rotate`: up to so many degrees either way. `zoom`: by a factor in
    [1 - zoom, 1 + zoom]. Rotating and zooming interpolate bilinearly.
    """

    shift: int = 0
    flip: bool = False
    rotate: float = 0.0
    zoom: float = 0.0

    def __post_init__(self):
        require(self.shift >= 0, "shift of augment", "must be at least 0", shift=self.shift)
        require(
            0 <= self.rotate <= 180, "rotate of augment", "must be in [0, 180]", rotate=self.rotate
        )
        require(0 <= self.zoom < 1, "zoom of augment", "must be in [0, 1)", zoom=self.zoom)

    def __bool__(self) -> bool:
        return bool(self.shift or self.flip or self.rotate or self.zoom)


def steps_per_epoch(data: Data, batch_size: int) -> int:
    """Returns the full batches in the training images (at least one; the rest wait an epoch)."""
    require(batch_size >= 1, "batch_size", "must be at least 1", batch_size=batch_size)
    return max(1, len(data.x_train) // batch_size)


def training_batches(
    data: Data,
    batch_size: int,
    epochs: int,
    first_epoch: int = 0,
    seed: int = 0,
    augment: Augment | None = None,
) -> tf.data.Dataset:
    """Returns the batches (float32 images, int32 labels) of epochs [first_epoch, epochs).

    Each epoch shuffles all training images and gives `steps_per_epoch` full batches; what is
    left over differs from epoch to epoch. With fewer images than `batch_size` the batch is all.
    """
    augment = augment or Augment()
    require(
        not augment or len(data.shape) == 3,
        "augment of data",
        "needs images (height, width, channels)",
        shape=data.shape,
    )
    steps = steps_per_epoch(data, batch_size)
    batch_size = min(batch_size, len(data.x_train))
    # Captured eager tensors are shared by reference, not copied into the graph.
    x, y = tf.constant(data.x_train), tf.constant(data.y_train)

    def indices(epoch):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(data.y_train)), tf.stack([tf.constant(seed, tf.int64), epoch])
        )
        rows = tf.reshape(order[: steps * batch_size], (steps, batch_size))
        numbers = epoch * steps + tf.range(steps, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices((numbers, rows))

    def batch(number, rows):
        images = _decode(tf.gather(x, rows), data)
        if augment:
            images = augmented(images, augment, tf.stack([tf.constant(seed, tf.int64), number]))
        images = (tf.cast(images, tf.float32) - data.mean) * data.scale
        return tf.ensure_shape(images, (batch_size, *data.shape)), tf.gather(y, rows)

    return (
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(indices)
        .map(batch, num_parallel_calls=2, deterministic=True)
        .prefetch(4)
    )


def evaluation_batches(data: Data, split: str, batch_size: int = 512) -> tf.data.Dataset:
    """Returns the batches (float32 images, int32 labels) of a split, once, in order."""
    x, y = data.split(split)

    def batch(images, labels):
        images = (tf.cast(_decode(images, data), tf.float32) - data.mean) * data.scale
        return tf.ensure_shape(images, (None, *data.shape)), labels

    pairs = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    return pairs.map(batch, num_parallel_calls=2, deterministic=True).prefetch(2)


def _decode(images: Any, data: Data) -> Any:
    if images.dtype != tf.string:
        return images

    def decode(paths):
        return data.decoder(np.array([path.decode() for path in paths]))

    return tf.ensure_shape(
        tf.numpy_function(decode, [images], tf.uint8), (images.shape[0], *data.shape)
    )


def augmented(images: Any, augment: Augment, seed: Any) -> Any:
    """Returns a batch (n, h, w, c) with `augment` applied; `seed` is an int64 pair."""
    n, height, width = images.shape[:3]

    def uniform(salt: int, low: float, high: float):
        # An independent stream for each kind of change, all from one pair.
        mixed = tf.random.split(seed, 8)[salt]
        return tf.random.stateless_uniform([n], mixed, low, high)

    if augment.rotate or augment.zoom:
        angle = uniform(0, -1.0, 1.0) * (augment.rotate * math.pi / 180)
        factor = 1 / (1 + uniform(1, -1.0, 1.0) * augment.zoom)
        images = _transformed(images, angle, factor)
    rows = tf.tile(tf.range(height)[tf.newaxis], (n, 1))
    columns = tf.tile(tf.range(width)[tf.newaxis], (n, 1))
    if augment.shift:
        span = augment.shift
        images = tf.pad(images, [(0, 0), (span, span), (span, span), (0, 0)])
        # floor() of a uniform number over 2 span + 1 values: every whole shift is equally likely.
        down = tf.cast(tf.floor(uniform(2, 0.0, 2 * span + 1.0)), tf.int32)
        right = tf.cast(tf.floor(uniform(3, 0.0, 2 * span + 1.0)), tf.int32)
        rows, columns = rows + down[:, tf.newaxis], columns + right[:, tf.newaxis]
    if augment.flip:
        turned = uniform(4, 0.0, 1.0)[:, tf.newaxis] < 0.5
        columns = tf.where(turned, tf.reverse(columns, [1]), columns)
    if augment.shift or augment.flip:
        images = tf.gather(images, rows, axis=1, batch_dims=1)
        images = tf.gather(images, columns, axis=2, batch_dims=1)
    return images


def _transformed(images: Any, angle: Any, factor: Any) -> Any:
    """Rotates and scales about the centre; what comes from outside is zero."""
    _, height, width = images.shape[:3]
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    a, b = tf.cos(angle) * factor, tf.sin(angle) * factor
    zero = tf.zeros_like(a)
    # Output pixel (x, y) reads input (a x - b y + c, b x + a y + f).
    c = middle_x - a * middle_x + b * middle_y
    f = middle_y - b * middle_x - a * middle_y
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, -b, c, b, a, f, zero, zero], axis=1),
        output_shape=tf.constant([height, width]),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
