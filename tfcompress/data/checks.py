"""What arrays must be before they are called images and labels."""

from typing import Any

import numpy as np

from tfcompress.errors import InputError

ROWS_AT_A_TIME = 4096


def check_images(images: Any, owner: str) -> np.ndarray:
    """Returns images (n, ...) as numbers, with a channel axis where there was none.

    uint8 stays, all else becomes float32; paths (an array of strings) pass as they are.
    """
    images = np.asarray(images)
    if images.dtype.kind == "U":
        return images
    if images.dtype.kind not in "buif":
        raise InputError(f"{owner} must hold real numbers. Received: dtype {images.dtype}")
    if images.ndim < 2 or images.size == 0:
        raise InputError(
            f"{owner} must be images (n, height, width, channels), (n, height, width) or rows "
            f"(n, features). Received: shape {images.shape}"
        )
    if images.dtype.kind == "f":
        _check_finite(images, owner)
    if images.dtype != np.uint8:
        images = images.astype(np.float32, copy=False)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    return images


def _check_finite(images: np.ndarray, owner: str) -> None:
    # Row blocks: the boolean array of a whole data set would be a quarter of its bytes again.
    for start in range(0, len(images), ROWS_AT_A_TIME):
        block = images[start : start + ROWS_AT_A_TIME]
        finite = np.isfinite(block)
        if not finite.all():
            first = int(np.argwhere(~finite)[0][0]) + start
            raise InputError(f"{owner} must be finite. Received: NaN or infinity in image {first}")


def check_labels(labels: Any, owner: str) -> np.ndarray:
    """Returns labels as int32 (n,); (n, 1) is flattened; anything but integers is an error."""
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.size == 0:
        raise InputError(f"{owner} must be integers (n,). Received: shape {labels.shape}")
    if labels.dtype.kind not in "ui":
        numeric = labels.dtype.kind == "f" and np.isfinite(labels).all()
        if not numeric or (labels != np.round(labels)).any():
            wrong = labels[labels != np.round(labels)][0] if numeric else f"dtype {labels.dtype}"
            raise InputError(f"{owner} must be integers. Received: {wrong}")
    if labels.min() < 0:
        raise InputError(
            f"{owner} must be classes 0, 1, ... "
            f"Received: {labels.min()} at index {int(labels.argmin())}"
        )
    return labels.astype(np.int32)


def check_two_classes(labels: np.ndarray, source: str) -> None:
    """Refuses training labels of a single class: there is nothing to learn."""
    found = np.unique(labels)
    if len(found) < 2:
        raise InputError(
            f"Labels y_train of {source} must hold two classes or more. "
            f"Received: only class {found[0]}"
        )
