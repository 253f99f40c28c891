"""The range of all values."""

import dataclasses

import numpy as np

from tfcompress.quantization.grid import Codes
from tfcompress.quantization.ranges import RANGES, checked, closed


@dataclasses.dataclass(frozen=True, eq=False)
class Extent:
    """The smallest and the largest value, float64 (g,), at most and at least 0."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, where: np.ndarray | None) -> "Extent":
        present = True if where is None else where
        low = rows.min(axis=1, where=present, initial=0.0).astype(np.float64)
        return cls(low, rows.max(axis=1, where=present, initial=0.0).astype(np.float64))


@RANGES.register("min_max")
@dataclasses.dataclass(frozen=True)
class MinMax:
    """Covers every value seen: nothing is clipped, and one outlier sets the step.

    >>> method = MinMax()
    >>> method.bounds(method.observe(np.array([[1.0, 3.0]])), Codes())
    (array([-3.]), array([3.]))
    """

    def observe(
        self, rows: np.ndarray, state: Extent | None = None, where: np.ndarray | None = None
    ) -> Extent:
        """Returns the extent of the values (g, n) and of those seen before."""
        rows = checked(rows, None if state is None else len(state.low), where, "MinMax")
        seen = Extent.of(rows, where)
        if state is None:
            return seen
        return Extent(np.minimum(state.low, seen.low), np.maximum(state.high, seen.high))

    def bounds(self, state: Extent, codes: Codes) -> tuple[np.ndarray, np.ndarray]:
        """Returns (low, high), float64 (g,)."""
        return closed(state.low, state.high, codes)
