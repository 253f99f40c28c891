"""`Data`: images and labels in three splits, and what the model sees of them."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfcompress.errors import require, unknown

STANDARDIZATIONS = ("none", "standard", "unit")
SPLITS = ("test", "train", "validation")
ROWS_AT_A_TIME = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Images and labels of a classification problem, split, and their standardisation.

    `x_train`, `x_validation`, `x_test` are stored as they came: (n, h, w, c) or (n, features),
    uint8 or float32, or (n,) paths of a folder too large for memory. The model sees
    `prepare(x)`. Labels are int32 (n,) in [0, classes).
    """

    source: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    mean: np.ndarray
    scale: np.ndarray
    decoder: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, without the batch axis."""
        return self.decoder.shape if self.decoder else self.x_train.shape[1:]

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns (x, y) of `train`, `validation` or `test`, as stored."""
        if name not in SPLITS:
            raise unknown("split of the data", name, SPLITS)
        return getattr(self, f"x_{name}"), getattr(self, f"y_{name}")

    def prepare(self, x: np.ndarray) -> np.ndarray:
        """Returns stored images as the model sees them: decoded, standardised, float32."""
        return (decoded(x, self.decoder).astype(np.float32) - self.mean) * self.scale

    def batches(self, name: str, batch_size: int = 256) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (images as the model sees them, labels) of a split, once, in order."""
        x, y = self.split(name)
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            yield self.prepare(x[part]), y[part]

    def samples(self, n: int, seed: int = 0) -> np.ndarray:
        """Returns `n` training images (all, if there are fewer) as the model sees them.

        They are drawn without repetition: calibration samples, float32 (n, ...).
        """
        require(n >= 1, "number of samples", "must be at least 1", n=n)
        chosen = np.random.default_rng(seed).permutation(len(self.x_train))[:n]
        return self.prepare(self.x_train[np.sort(chosen)])

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that training and measuring can depend on."""
        digest = hashlib.sha256()
        for name in SPLITS:
            for array in self.split(name):
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data.cast("B"))
                if array.dtype.kind == "U":
                    digest.update(self.decoder.stamps(array).encode())
        digest.update(repr((self.classes, self.mean.tolist(), self.scale.tolist())).encode())
        return digest.hexdigest()


def decoded(x: np.ndarray, decoder: Any) -> np.ndarray:
    """Returns paths as uint8 images; images pass as they are."""
    return decoder(x) if x.dtype.kind == "U" else x


def largest_value(x: np.ndarray) -> float:
    """Returns the largest absolute value."""
    return float(max(abs(float(x.min())), abs(float(x.max()))))


def channel_statistics(x: np.ndarray, decoder: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of the last axis' channels, float64 (channels,).

    Rows (n, features) have one mean and one deviation in all. Read in blocks, so that neither
    float copies nor all images of a folder are in memory at once.
    """
    total = squares = np.zeros(1)
    count = 0
    for start in range(0, len(x), ROWS_AT_A_TIME):
        block = decoded(x[start : start + ROWS_AT_A_TIME], decoder).astype(np.float64)
        flat = block.reshape(-1, block.shape[-1] if block.ndim == 4 else 1)
        total = total + flat.sum(axis=0)
        squares = squares + (flat**2).sum(axis=0)
        count += len(flat)
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))
