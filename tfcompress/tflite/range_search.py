"""Ranges of activations that bring a file's outputs as near as they can to those of float."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from tfcompress.errors import InputError
from tfcompress.tflite import interpreter
from tfcompress.tflite.calibration import Ranges

_STEPS = (1 / 1.3, 1.3, 1 / 1.1, 1.1)
_SWEEPS = 2
_SURE = 2.0  # standard errors that a gain must be above zero: samples gain by chance, too


def search(
    written: Callable[[Ranges], bytes],
    ranges: Ranges,
    reference: bytes,
    samples: Sequence[np.ndarray],
) -> Ranges:
    """Returns the ranges, each that was not learned widened or narrowed as the outputs want it.

    Coordinate descent: the range of one tensor after another is multiplied by each of `_STEPS` as
    long as that surely brings the outputs nearer, by the samples' gains; all of them twice. Nearer
    is the smaller divergence of probabilities, or squared error of other outputs.

    Args:
        written: makes the file of given ranges.
        reference: the float file; samples: for each input an array (n, ...).
    """
    wanted = _outputs(reference, samples)
    content = written(ranges)
    errors = _errors(content, wanted, samples)
    for _ in range(_SWEEPS):
        before = ranges
        for tensor, step in itertools.product(ranges.observed, _STEPS):
            while True:
                tried = ranges.scaled(tensor, step)
                other = written(tried)
                # An unchanged file: a kernel dictates the range.
                found = errors if other == content else _errors(other, wanted, samples)
                if not _surely_less(found, errors):
                    break
                ranges, content, errors = tried, other, found
        if ranges is before:
            break
    return ranges


def _surely_less(errors: np.ndarray, before: np.ndarray) -> bool:
    """Returns whether the mean of the samples' errors is less, and not by their choice."""
    if not np.isfinite(before).all() or not np.isfinite(errors).all():
        return bool(errors.mean() < before.mean())
    gains = before - errors
    deviation = np.std(gains, ddof=1) if len(gains) > 1 else np.inf
    return bool(gains.mean() > _SURE * deviation / np.sqrt(len(gains)))


def _outputs(content: bytes, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    found = interpreter.run(content, list(samples))
    return found if isinstance(found, list) else [found]


def _errors(
    content: bytes, wanted: Sequence[np.ndarray], samples: Sequence[np.ndarray]
) -> np.ndarray:
    """Returns how far each sample's outputs are from those wanted, the mean over all outputs."""
    try:
        found = _outputs(content, samples)
    except InputError:  # XNNPACK does not run every ratio of scales
        return np.full(len(samples[0]), np.inf)
    pairs = zip(found, wanted, strict=True)
    return np.mean([_divergence(a, b) if _shares(b) else _squares(a, b) for a, b in pairs], axis=0)


def _shares(wanted: np.ndarray) -> bool:
    """Returns whether an output is probabilities of classes."""
    if wanted.ndim < 2 or wanted.shape[-1] < 2 or wanted.min() < 0:
        return False
    return bool(np.allclose(wanted.sum(axis=-1), 1, atol=1e-3))


def _divergence(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns Kullback and Leibler's divergence, with half a code of 8 bits as the least share."""
    found, wanted = np.maximum(found, 1 / 512), np.maximum(wanted, 1 / 512)
    terms = wanted * np.log(wanted / found) - wanted + found
    return _by_sample(terms.sum(axis=-1), np.mean)


def _squares(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the squared errors over the outputs' mean power."""
    power = np.mean(_by_sample(np.square(wanted, dtype=np.float64), np.sum))
    return _by_sample(np.square(found - wanted, dtype=np.float64), np.sum) / max(power, 1e-30)


def _by_sample(x: np.ndarray, of: Callable[..., np.ndarray]) -> np.ndarray:
    return of(x.reshape(len(x), -1), axis=1)
