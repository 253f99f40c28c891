"""`load`: from a source's word to checked, split, standardised data."""

import numpy as np

from tfcompress.data import sources
from tfcompress.data.checks import check_images, check_labels, check_two_classes
from tfcompress.data.dataset import STANDARDIZATIONS, Data, channel_statistics, largest_value
from tfcompress.errors import InputError, require, unknown

# The split of a source that has no test images is part of what the source is: it does not
# depend on the seed, so that runs with other seeds are compared on the same images.
TEST_SPLIT_SEED = 0


def load(
    source: str,
    validation: float = 0.1,
    seed: int = 0,
    standardize: str = "unit",
    test: float = 0.2,
    size: int | tuple[int, int] | None = None,
) -> Data:
    """Returns the images and labels of `source`, checked and split.

    Args:
        source: `digits` (scikit-learn's, 8x8x1), `npz:FILE` (x_train, y_train, x_test, y_test; or
            x, y), `images:FOLDER` (`train/<class>/*.jpg|png`, `test/<class>/...`), `keras:NAME`
            (of `keras.datasets`; downloads), `python:MODULE:FUNCTION` (returns arrays as
            `((x_train, y_train), (x_test, y_test))`, `(x, y)` or a mapping with the keys of an
            npz; or one or two `tf.data.Dataset` of pairs).
        validation: share in (0, 1) of the training images that is held out, class by class.
        seed: of the choice of validation images.
        standardize: `unit` (uint8 by 255, others by the largest training value), `standard`
            (per channel, mean 0 and standard deviation 1 over the training images) or `none`.
        test: share in (0, 1) of the images that a source without test images sets aside.
        size: (height, width) that images of a folder are scaled to; None = all have one size.

    Returns:
        `Data`; grayscale images (n, h, w) get a channel axis.

    Raises:
        InputError: whatever cannot be used, by name: files, keys, lengths, labels, NaN.

    >>> data = load("digits")
    >>> data.shape, data.classes
    ((8, 8, 1), 10)
    """
    require(0 < validation < 1, "validation of data", "must be in (0, 1)", validation=validation)
    require(0 < test < 1, "test of data", "must be in (0, 1)", test=test)
    if standardize not in STANDARDIZATIONS:
        raise unknown("standardisation", standardize, STANDARDIZATIONS)
    raw = sources.read(source, size)
    x_train, y_train = _checked(raw, source, "x_train", "y_train")
    if "x_test" in raw:
        x_test, y_test = _checked(raw, source, "x_test", "y_test")
    else:
        kept, held = stratified_split(y_train, test, TEST_SPLIT_SEED)
        x_test, y_test = x_train[held], y_train[held]
        x_train, y_train = x_train[kept], y_train[kept]
    if x_train.shape[1:] != x_test.shape[1:]:
        raise InputError(
            f"Images of {source} must have one shape. "
            f"Received: x_train {x_train.shape}, x_test {x_test.shape}"
        )
    check_two_classes(y_train, source)
    classes = len(raw["class_names"]) if "class_names" in raw else int(y_train.max()) + 1
    if y_test.max() >= classes:
        raise InputError(
            f"Labels y_test of {source} must be in [0, {classes}), the classes of y_train. "
            f"Received: {y_test.max()} at index {int(y_test.argmax())}"
        )
    kept, held = stratified_split(y_train, validation, seed)
    mean, scale = _standardization(standardize, x_train[kept], raw.get("decoder"))
    return Data(
        source=source,
        x_train=x_train[kept],
        y_train=y_train[kept],
        x_validation=x_train[held],
        y_validation=y_train[held],
        x_test=x_test,
        y_test=y_test,
        classes=classes,
        mean=mean,
        scale=scale,
        decoder=raw.get("decoder"),
    )


def _checked(raw: dict, source: str, x_name: str, y_name: str) -> tuple[np.ndarray, np.ndarray]:
    x = check_images(raw[x_name], f"{x_name} of {source}")
    y = check_labels(raw[y_name], f"Labels {y_name} of {source}")
    if len(x) != len(y):
        raise InputError(
            f"{x_name} and {y_name} of {source} must have one length. "
            f"Received: {len(x)} images, {len(y)} labels"
        )
    return x, y


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices (kept, held out), sorted; `share` of every class is held out.

    A class of two images or more has at least one on either side; a single image is kept.
    """
    generator = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = round(share * len(members))
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        held.append(members[: min(count, len(members) - 1)])
    held_out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def _standardization(word: str, x: np.ndarray, decoder) -> tuple[np.ndarray, np.ndarray]:
    """Returns (mean, scale), float32, with which the model sees `(x - mean) * scale`."""
    if word == "none":
        return np.zeros(1, np.float32), np.ones(1, np.float32)
    if word == "unit":
        byte = decoder is not None or x.dtype == np.uint8
        largest = 255.0 if byte else largest_value(x)
        return np.zeros(1, np.float32), np.asarray([1 / (largest or 1.0)], np.float32)
    mean, deviation = channel_statistics(x, decoder)
    # A constant channel carries nothing: it becomes zero instead of infinite.
    return mean.astype(np.float32), (1 / np.where(deviation > 0, deviation, 1)).astype(np.float32)
