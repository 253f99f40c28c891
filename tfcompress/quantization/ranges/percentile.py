"""The range of all but the rarest values."""

import dataclasses
import numbers

import numpy as np

from tfcompress.errors import require
from tfcompress.quantization.grid import Codes
from tfcompress.quantization.histogram import BINS, Histogram
from tfcompress.quantization.ranges import RANGES, checked, closed

_EXACT_VALUES = 1 << 20  # as many are kept and sorted


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """The values seen, float64 (g, n) with NaN for none; of too many, only the histogram."""

    values: np.ndarray | None
    histogram: Histogram


@RANGES.register("percentile")
@dataclasses.dataclass(frozen=True)
class Percentile:
    """Covers `percent` of the values: the rest is clipped.

    Symmetric codes: the percentile of |w|. Others: from the percentile `100 - percent` to the
    percentile `percent`. Linearly interpolated, as in `np.percentile`; exact up to 1,048,576
    values, above that read from a histogram, right to one of its bins.

    `percent`: in (50, 100].

    >>> method = Percentile(percent=75)
    >>> method.bounds(method.observe(np.array([[0.0, -1.0, 2.0, -3.0, 9.0]])), Codes())[1]
    array([3.])
    """

    percent: float = 99.99

    def __post_init__(self) -> None:
        valid = isinstance(self.percent, numbers.Real) and 50 < float(self.percent) <= 100
        require(valid, "percent of Percentile", "must be in (50, 100]", percent=self.percent)

    def observe(
        self, rows: np.ndarray, state: Sample | None = None, where: np.ndarray | None = None
    ) -> Sample:
        """Returns the values (g, n) with those seen before."""
        groups = None if state is None else len(state.histogram.zeros)
        rows = checked(rows, groups, where, "Percentile")
        histogram = Histogram.empty(len(rows), 2 * BINS) if state is None else state.histogram
        values = np.empty((len(rows), 0)) if state is None else state.values
        if values is not None and values.size + rows.size <= _EXACT_VALUES:
            new = rows if where is None else np.where(where, rows, np.nan)
            values = np.concatenate([values, new], axis=1)
        else:
            values = None
        return Sample(values, histogram.add(rows, where))

    def bounds(self, state: Sample, codes: Codes) -> tuple[np.ndarray, np.ndarray]:
        """Returns (low, high), float64 (g,)."""
        share = self.percent / 100
        if codes.symmetric:
            high = _quantile(state, share, magnitudes=True)
            return closed(-high, high, codes)
        return closed(_quantile(state, 1 - share), _quantile(state, share), codes)


def _quantile(state: Sample, share: float, magnitudes: bool = False) -> np.ndarray:
    """Returns the quantile of each group's values or of their magnitudes: float64 (g,)."""
    if state.values is None:
        return _histogram_quantile(state.histogram, share, magnitudes)
    return _exact_quantile(state.values, share, magnitudes)


def _exact_quantile(values: np.ndarray, share: float, magnitudes: bool) -> np.ndarray:
    """Returns each row's quantile, 0 where it holds nothing but NaN."""
    ascending = np.sort(np.abs(values) if magnitudes else values, axis=1)  # NaN come last
    count = np.isfinite(ascending).sum(axis=1)
    place = share * np.maximum(count - 1, 0)
    below = np.floor(place).astype(np.int64)
    group = np.arange(len(values))
    lower = ascending[group, below]
    upper = ascending[group, np.minimum(below + 1, np.maximum(count - 1, 0))]
    return np.where(count > 0, lower + (place - below) * (upper - lower), 0.0)


def _histogram_quantile(histogram: Histogram, share: float, magnitudes: bool) -> np.ndarray:
    """Returns each group's quantile, with the values of a bin spread evenly over it."""
    quantiles = []
    for group, edges in enumerate(histogram.edges()):
        begins, ends = edges[:-1], edges[1:]
        if magnitudes:
            begins, ends = np.minimum(abs(begins), abs(ends)), np.maximum(abs(begins), abs(ends))
        # The zeros are a bin of no width.
        begins, ends = np.append(begins, 0.0), np.append(ends, 0.0)
        counts = np.append(histogram.counts[group], histogram.zeros[group])
        order = np.lexsort((ends, begins))
        begins, ends, counts = begins[order], ends[order], counts[order]
        last = np.cumsum(counts)
        place = share * max(last[-1] - 1, 0)
        ranks = np.array([np.floor(place), np.ceil(place)])
        bins = np.minimum(np.searchsorted(last, ranks, side="right"), len(last) - 1)
        into = (ranks - (last - counts)[bins] + 0.5) / np.maximum(counts[bins], 1)
        lower, upper = begins[bins] + into * (ends - begins)[bins]
        low, high = histogram.low[group], histogram.high[group]
        low, high = (0.0, max(-low, high)) if magnitudes else (low, high)
        quantiles.append(np.clip(lower + (place - ranks[0]) * (upper - lower), low, high))
    return np.array(quantiles)
