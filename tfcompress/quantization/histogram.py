"""Histograms of values that are seen batch by batch, in bounded memory.

A bin's width is a power of two and its borders are multiples of it: when the range grows, bins are
merged in pairs, exactly. So the histogram depends on the values alone, not on how they were cut
into batches.
"""

import dataclasses

import numpy as np

BINS = 4096
_FEWEST_BINS = 256
_CELLS = 1 << 20  # groups x bins: above, each group has fewer bins
_CHUNK = 1 << 20  # values binned at a time
_NO_EXTENT = -1000  # the exponent where no value but 0 was seen


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """How often values fell into each bin, for g groups of values.

    Bin i of group g counts the values in [first + i, first + i + 1) * 2**exponent. Zeros are
    counted apart: every grid holds them exactly, and after a ReLU they are the most frequent value.

    `low`, `high`: float64 (g,), the smallest and largest value, and at most and at least 0.
    `zeros`: int64 (g,). `exponent`, `first`: int64 (g,). `counts`: int64 (g, bins).
    """

    low: np.ndarray
    high: np.ndarray
    zeros: np.ndarray
    exponent: np.ndarray
    first: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls, groups: int, bins: int = BINS) -> "Histogram":
        """Returns the histogram of no values; with many groups, each has fewer bins."""
        bins = max(min(bins, _CELLS // groups), min(bins, _FEWEST_BINS))
        whole = np.zeros(groups, np.int64)
        zero = np.zeros(groups)
        exponent = np.full(groups, _NO_EXTENT, np.int64)
        return cls(zero, zero, whole, exponent, whole, np.zeros((groups, bins), np.int64))

    def edges(self) -> np.ndarray:
        """Returns the borders of the bins, float64 (g, bins + 1)."""
        borders = self.first[:, None] + np.arange(self.counts.shape[1] + 1)
        return np.ldexp(borders.astype(np.float64), self.exponent[:, None])

    def add(self, rows: np.ndarray, where: np.ndarray | None = None) -> "Histogram":
        """Returns the histogram with the values (g, n) counted too, or those that `where` marks."""
        present = True if where is None else where
        low = np.minimum(self.low, rows.min(axis=1, where=present, initial=0.0))
        high = np.maximum(self.high, rows.max(axis=1, where=present, initial=0.0))
        grown = self._covering(low, high)
        counts, zeros = grown.counts.copy(), grown.zeros.copy()
        width = max(1, _CHUNK // len(rows))
        for begin in range(0, rows.shape[1], width):
            part = rows[:, begin : begin + width]
            mask = np.ones(part.shape, bool) if where is None else where[:, begin : begin + width]
            zeros += (mask & (part == 0)).sum(axis=1)
            group, column = np.nonzero(mask & (part != 0))
            scaled = np.ldexp(part[group, column].astype(np.float64), -grown.exponent[group])
            counts += _count(group, np.floor(scaled).astype(np.int64) - grown.first[group], counts)
        return dataclasses.replace(grown, zeros=zeros, counts=counts)

    def _covering(self, low: np.ndarray, high: np.ndarray) -> "Histogram":
        """Returns the same counts in the narrowest bins that reach from `low` to `high`."""
        bins = self.counts.shape[1]
        span = high - low
        exponent = np.where(span > 0, np.frexp(span / bins)[1], _NO_EXTENT).astype(np.int64)
        first, last = (np.floor(np.ldexp(end, -exponent)) for end in (low, high))
        exponent += (span > 0) & (last - first >= bins)
        first = np.floor(np.ldexp(low, -exponent)).astype(np.int64)
        if np.array_equal(exponent, self.exponent) and np.array_equal(first, self.first):
            return dataclasses.replace(self, low=low, high=high)
        group, column = np.nonzero(self.counts)
        shift = np.minimum(exponent - self.exponent, 62)[group]
        moved = ((self.first[group] + column) >> shift) - first[group]
        counts = _count(group, moved, self.counts, self.counts[group, column])
        return Histogram(low, high, self.zeros, exponent, first, counts)


def _count(
    group: np.ndarray, column: np.ndarray, like: np.ndarray, times: np.ndarray | None = None
) -> np.ndarray:
    counts = np.bincount(group * like.shape[1] + column, times, like.size)
    return counts.astype(np.int64).reshape(like.shape)
