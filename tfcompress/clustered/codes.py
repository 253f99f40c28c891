"""K-means on the int8 grid: few codes for a whole kernel, and a scale for each channel."""

from collections.abc import Sequence

import numpy as np

from tfcompress.quantization.grid import WEIGHTS
from tfcompress.quantization.rounding.kmeans import codebook

_ROUNDS = 6
# Scales that are tried, as shares of max|w| / 127: below 1 the largest weights are cut off.
_SHARES = np.linspace(0.4, 1.1, 29)


def cluster_codes(
    w: np.ndarray,
    axes: Sequence[int],
    clusters: int,
    keep_zeros: bool = True,
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a kernel's codes, int8, of `clusters` different ones at most, and its values.

    A value is its code times the scale of its channel, float32. Codes and scales are found in
    turns: the best codes for the scales (dynamic programming over the grid), then for each channel
    the scale with the least squared error. The codes 127 and -127 are always among the clusters,
    and each channel that is not all zero has one of them, so that max|w| / 127 is its scale and the
    converter finds the same codes. Zero, where zeros are kept, is one of the clusters.

    `axes`: of the channels that have a scale each; (): one scale. `importance`: of each weight.
    """
    axes = [axis % w.ndim for axis in axes]
    order = [*axes, *(axis for axis in range(w.ndim) if axis not in axes)]
    turned = w.transpose(order)
    channels = int(np.prod(turned.shape[: len(axes)]))
    rows = turned.reshape(channels, -1).astype(np.float64)
    weight = np.ones(rows.shape)
    if importance is not None:
        weight = importance.transpose(order).reshape(rows.shape).astype(np.float64)
    codes, scales = _search(rows, weight, clusters, keep_zeros)
    values = scales.astype(np.float32)[:, None] * codes.astype(np.float32)
    back = np.argsort(order)
    return (
        codes.astype(np.int8).reshape(turned.shape).transpose(back),
        values.reshape(turned.shape).transpose(back),
    )


def _search(
    rows: np.ndarray, weight: np.ndarray, clusters: int, keep_zeros: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes (channels, n) and scales (channels,) with the least squared error found."""
    largest = np.abs(rows).max(axis=1)
    # A channel of zeros keeps them with any scale; it must not pull codes towards 0.
    scales = np.where(largest > 0, largest / 127, 1.0)
    weight = np.where(largest[:, None] > 0, weight, 0.0)
    zeros = (rows == 0) & keep_zeros
    kept = np.array([-127, 0, 127] if zeros[largest > 0].any() else [-127, 127])
    best = np.inf, np.zeros(rows.shape, np.int64), scales
    for _ in range(_ROUNDS):
        steps = np.clip(rows / scales[:, None], -127, 127)
        book = codebook(
            steps.ravel(), (weight * scales[:, None] ** 2).ravel(), clusters, WEIGHTS, kept
        )
        scales = _scales(rows, weight, zeros, largest, book)
        codes = _nearest(rows / scales[:, None], book, zeros)
        scales = _least_squares(rows, weight, codes, scales)
        error = float((weight * (rows - scales[:, None] * codes) ** 2).sum())
        if error >= best[0] * (1 - 1e-4):
            break
        best = error, codes, scales
    return np.where(largest[:, None] > 0, best[1], 0), best[2]


def _scales(
    rows: np.ndarray, weight: np.ndarray, zeros: np.ndarray, largest: np.ndarray, book: np.ndarray
) -> np.ndarray:
    """Returns for each channel the scale that suits the codes best, and lets one be +-127."""
    whole = np.where(largest > 0, largest / 127, 1.0)
    found = whole.copy()
    least = np.full(len(rows), np.inf)
    for share in _SHARES:
        scale = share * whole
        codes = _nearest(rows / scale[:, None], book, zeros)
        errors = (weight * (rows - scale[:, None] * codes) ** 2).sum(axis=1)
        better = (errors < least) & (np.abs(codes).max(axis=1) == 127)
        found, least = np.where(better, scale, found), np.where(better, errors, least)
    return found


def _nearest(steps: np.ndarray, book: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    codes = book[np.searchsorted((book[1:] + book[:-1]) / 2, steps)]
    return np.where(zeros, 0, codes)


def _least_squares(
    rows: np.ndarray, weight: np.ndarray, codes: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    power = (weight * codes.astype(np.float64) ** 2).sum(axis=1)
    found = (weight * rows * codes).sum(axis=1)
    return np.where(found > 0, found / np.where(power > 0, power, 1.0), scales)
