"""Ranges of activations that bring a file's outputs as near as they can to those of float."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from tfcompress.errors import InputError
from tfcompress.tflite import interpreter
from tfcompress.tflite.calibration import Ranges

_STEPS = (1 / 1.3, 1.3, 1 / 1.1, 1.1)
_SWEEPS = 2
_LEAST_GAIN = 0.002  # what samples gain by less may be their own


def search(
    written: Callable[[Ranges], bytes],
    ranges: Ranges,
    reference: bytes,
    samples: Sequence[np.ndarray],
) -> Ranges:
    """Returns the ranges, each that was not learned widened or narrowed as the outputs want it.

    Coordinate descent: the range of one tensor after another is multiplied by each of `_STEPS` as
    long as that brings the outputs nearer on the samples; all of them twice. Nearer is the smaller
    divergence of probabilities, or squared error of other outputs.

    Args:
        written: makes the file of given ranges.
        reference: the float file; samples: for each input an array (n, ...).
    """
    wanted = _outputs(reference, samples)
    content = written(ranges)
    least = _error(content, wanted, samples)
    for _ in range(_SWEEPS):
        before = ranges
        for tensor, step in itertools.product(ranges.observed, _STEPS):
            while True:
                tried = ranges.scaled(tensor, step)
                other = written(tried)
                # An unchanged file: a kernel dictates the range.
                error = least if other == content else _error(other, wanted, samples)
                if error >= least * (1 - _LEAST_GAIN):
                    break
                ranges, content, least = tried, other, error
        if ranges is before:
            break
    return ranges


def _outputs(content: bytes, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    found = interpreter.run(content, list(samples))
    return found if isinstance(found, list) else [found]


def _error(content: bytes, wanted: Sequence[np.ndarray], samples: Sequence[np.ndarray]) -> float:
    """Returns how far the outputs are from those wanted, the mean over all outputs."""
    try:
        found = _outputs(content, samples)
    except InputError:  # XNNPACK does not run every ratio of scales
        return np.inf
    pairs = zip(found, wanted, strict=True)
    return float(np.mean([_divergence(a, b) if _shares(b) else _squares(a, b) for a, b in pairs]))


def _shares(wanted: np.ndarray) -> bool:
    """Returns whether an output is probabilities of classes."""
    if wanted.ndim < 2 or wanted.shape[-1] < 2 or wanted.min() < 0:
        return False
    return bool(np.allclose(wanted.sum(axis=-1), 1, atol=1e-3))


def _divergence(found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns Kullback and Leibler's divergence, with half a code of 8 bits as the least share."""
    found, wanted = np.maximum(found, 1 / 512), np.maximum(wanted, 1 / 512)
    terms = wanted * np.log(wanted / found) - wanted + found
    return float(terms.sum(axis=-1).mean())


def _squares(found: np.ndarray, wanted: np.ndarray) -> float:
    squares = np.sum(wanted**2, dtype=np.float64)
    return float(np.sum((found - wanted) ** 2, dtype=np.float64) / max(squares, 1e-30))
