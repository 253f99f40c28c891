"""The range with the least squared error."""

import dataclasses
import itertools
import numbers

import numpy as np

from tfcompress.errors import require
from tfcompress.quantization.grid import Codes, Grid, grid
from tfcompress.quantization.histogram import Histogram
from tfcompress.quantization.ranges import RANGES, checked, closed

_BINS = 2048


@RANGES.register("mse")
@dataclasses.dataclass(frozen=True)
class Mse:
    """Covers the range whose rounding and clipping errors together are least, in mean square.

    Every share 1/candidates, 2/candidates, ..., 1 of the largest magnitude is tried; where codes
    are not symmetric and values lie on both sides of 0, every pair of shares of the two ends. The
    error is that of the values' histogram, which is taken to be even within a bin and whose zeros
    cost nothing: of the ranges tried the best, without sampling. Of equal errors the widest range.

    `candidates`: in [2, 1024].

    Source: Banner et al. 2019 and Nagel et al. 2021, "A white paper on neural network
    quantization", section 3.1.

    >>> method, codes = Mse(), Codes(bits=3)
    >>> values = np.array([[-1.0, -0.5, 0.5, 1.0] * 100 + [2.0]])
    >>> float(method.bounds(method.observe(values), codes)[1][0]) < 2.0
    True
    """

    candidates: int = 64

    def __post_init__(self) -> None:
        whole = isinstance(self.candidates, numbers.Integral)
        require(
            whole and 2 <= self.candidates <= 1024,
            "candidates of Mse",
            "must be a whole number in [2, 1024]",
            candidates=self.candidates,
        )

    def observe(
        self, rows: np.ndarray, state: Histogram | None = None, where: np.ndarray | None = None
    ) -> Histogram:
        """Returns the histogram of the values (g, n) and of those seen before."""
        rows = checked(rows, None if state is None else len(state.zeros), where, "Mse")
        return (Histogram.empty(len(rows), _BINS) if state is None else state).add(rows, where)

    def bounds(self, state: Histogram, codes: Codes) -> tuple[np.ndarray, np.ndarray]:
        """Returns (low, high), float64 (g,)."""
        low, high = closed(state.low, state.high, codes)
        error = Error.of(state)
        best, best_low, best_high = error(grid(low, high, codes)), low, high
        for below, above in self._shares(low, high, codes):
            tried = error(grid(below * low, above * high, codes))
            better = tried < best
            best = np.where(better, tried, best)
            best_low = np.where(better, below * low, best_low)
            best_high = np.where(better, above * high, best_high)
        return best_low, best_high

    def _shares(self, low: np.ndarray, high: np.ndarray, codes: Codes) -> list:
        """Returns the shares of (low, high) to try, the widest first."""
        shares = [step / self.candidates for step in range(self.candidates, 0, -1)]
        if codes.symmetric:
            return [(share, share) for share in shares]
        return list(
            itertools.product(shares if low.any() else [1.0], shares if high.any() else [1.0])
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Error:
    """The sum of squared errors of a histogram's values on a grid, one number per group.

    On the cell of code k, r = x / s - k steps from its point, the error is s^2 r^2; integrated from
    0 to x, that is s^3 (k / 12 + r^3 / 3), past the last code too, where r grows beyond 1/2.
    """

    edges: np.ndarray
    density: np.ndarray

    @classmethod
    def of(cls, histogram: Histogram) -> "Error":
        used = np.pad(histogram.counts.any(axis=0), 1)
        kept = np.flatnonzero(used[1:] | used[:-1])  # the borders of bins that are not empty
        counts = histogram.counts[:, kept[:-1]].astype(np.float64)
        density = np.ldexp(counts, -histogram.exponent[:, None], where=counts > 0, out=counts)
        return cls(histogram.edges()[:, kept], density)

    def __call__(self, grid: Grid) -> np.ndarray:
        scale = np.where(grid.scale > 0, grid.scale, 1.0)[:, None]
        steps = self.edges / scale
        ends = [(end - grid.zero_point)[:, None] for end in (grid.codes.lowest, grid.codes.highest)]
        codes = np.rint(np.clip(steps, *ends))
        steps -= codes
        integral = codes / 12 + steps * steps * steps / 3
        return np.einsum("gn,gn->g", np.diff(integral, axis=1), self.density) * scale[:, 0] ** 3
