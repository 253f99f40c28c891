"""The range that keeps most of the distribution's information."""

import dataclasses

import numpy as np

from tfcompress.quantization.grid import Codes
from tfcompress.quantization.histogram import BINS, Histogram
from tfcompress.quantization.ranges import RANGES, checked, closed


@RANGES.register("entropy")
@dataclasses.dataclass(frozen=True)
class Entropy:
    """Covers the magnitudes whose distribution suffers least from the codes, as TensorRT does.

    For every threshold of i bins, at least as many as levels, the distribution P of |x| with what
    lies above moved into its last bin is compared with Q: the bins below the threshold merged into
    levels, each level spread evenly over those of its bins that are not empty. The threshold with
    the smallest Kullback-Leibler divergence KL(P || Q) wins and is laid into the middle of the next
    bin; the divergence is infinite where the last bin holds nothing but what was moved there.

    2**(bits - 1) levels, or 2**bits where codes are not symmetric and no value lies on one side
    of 0. Zeros do not count: every grid holds them exactly. Codes that are not symmetric clip each
    side at the threshold, and cover no more than was seen. With more levels than bins, all is
    covered: nothing would be lost inside. Bins are merged until there are no more of them than
    values: a threshold cannot be told from a few values, so that small channels are covered whole.

    Source: Migacz 2017, "8-bit inference with TensorRT".

    >>> method = Entropy()
    >>> values = np.append(np.random.default_rng(0).normal(size=100_000), 40.0)[None]
    >>> 3 < method.bounds(method.observe(values), Codes())[1][0] < 20
    np.True_
    """

    def observe(
        self, rows: np.ndarray, state: Histogram | None = None, where: np.ndarray | None = None
    ) -> Histogram:
        """Returns the histogram of the values (g, n) and of those seen before."""
        rows = checked(rows, None if state is None else len(state.zeros), where, "Entropy")
        return (Histogram.empty(len(rows), BINS) if state is None else state).add(rows, where)

    def bounds(self, state: Histogram, codes: Codes) -> tuple[np.ndarray, np.ndarray]:
        """Returns (low, high), float64 (g,)."""
        low, high = closed(state.low, state.high, codes)
        one_sided = (state.low == 0) | (state.high == 0)
        levels = 2 ** (codes.bits - 1 + (one_sided & (not codes.symmetric)))
        threshold = np.zeros(len(low))
        for group in range(len(low)):
            counts, width = magnitudes(state, group)
            threshold[group] = (best_threshold(counts, levels[group]) + 0.5) * width
        return np.maximum(low, -threshold), np.minimum(high, threshold)


def magnitudes(histogram: Histogram, group: int = 0) -> tuple[np.ndarray, float]:
    """Returns how many values of |x| lie in each bin from 0 on, int64, and the bins' width.

    The last bin is not empty, and there are no more bins than values.
    """
    counts, first = histogram.counts[group], int(histogram.first[group])
    positive, negative = counts[-first:], counts[:-first][::-1] if first else counts[:0]
    folded = np.zeros(max(len(positive), len(negative)), np.int64)
    folded[: len(positive)] += positive
    folded[: len(negative)] += negative
    folded, width = np.trim_zeros(folded, "b"), 2.0 ** histogram.exponent[group]
    while len(folded) > folded.sum():
        folded = np.pad(folded, (0, len(folded) % 2)).reshape(-1, 2).sum(axis=1)
        width *= 2
    return folded, width


def best_threshold(counts: np.ndarray, levels: int) -> int:
    """Returns the number of bins, in [levels, len(counts)], with the smallest divergence.

    All bins if there are no more of them than levels. Of equal divergences the fewest bins.
    """
    if len(counts) <= levels:
        return len(counts)
    kept = np.arange(levels, len(counts) + 1)
    divergence = np.concatenate(
        [_divergence(counts, part, levels) for part in _parts(kept, levels)]
    )
    return int(kept[np.argmin(divergence)])


def _parts(kept: np.ndarray, levels: int) -> list[np.ndarray]:
    """Cuts the thresholds so that each part's arrays have about a million entries."""
    return np.array_split(kept, -(-len(kept) * levels // (1 << 20)))


def _divergence(counts: np.ndarray, kept: np.ndarray, levels: int) -> np.ndarray:
    """Returns KL(P || Q) for the first `kept` bins (t,), from running sums over the bins.

    With c the counts, N their sum, M the sum of the bins kept, L the sum of a bin's level and m the
    number of its bins that are not empty: P = c / N and Q = L / (m M), so that
    KL = sum of P log P - sum over the levels of (L / N) log(L / (m M)), with the last bin's P and
    its level's share of P raised by what was moved there.
    """

    def running(terms: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum(terms)])

    def log(numbers: np.ndarray) -> np.ndarray:
        return np.log(numbers, out=np.zeros(numbers.shape), where=numbers > 0)

    counts = counts.astype(np.float64)
    total, mass, used = counts.sum(), running(counts), running(counts > 0)
    borders = -(-np.arange(levels + 1) * kept[:, None] // levels)  # bin j is in level j levels // i
    level = np.diff(mass[borders], axis=1)
    even = log(level) - log(np.diff(used[borders], axis=1)) - log(mass[kept])[:, None]
    last, moved = counts[kept - 1], total - mass[kept]
    own = running(counts * log(counts))[kept]
    own += (last + moved) * log(last + moved) - last * log(last) - total * np.log(total)
    shared = (level * even).sum(axis=1) + moved * even[:, -1]
    return np.where((last == 0) & (moved > 0), np.inf, (own - shared) / total)
