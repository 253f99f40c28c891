"""A range of so many standard deviations."""

import dataclasses
import numbers

import numpy as np

from tfcompress.errors import require
from tfcompress.quantization.grid import Codes
from tfcompress.quantization.ranges import RANGES, checked, closed
from tfcompress.quantization.ranges.min_max import Extent, MinMax


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Of the values seen: extent, `count`, `mean` and sum of squared deviations, each (g,)."""

    extent: Extent
    count: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


@RANGES.register("sigma")
@dataclasses.dataclass(frozen=True)
class Sigma:
    """Covers mean - z * std to mean + z * std, but no more than the values that were seen.

    std is that of all values seen (divided by their number). Symmetric codes take the larger end.

    `z`: above 0.

    >>> method = Sigma(z=1.0)
    >>> method.bounds(method.observe(np.array([[-1.0, 1.0, -3.0, 3.0]])), Codes())[1] ** 2
    array([5.])
    """

    z: float = 4.0

    def __post_init__(self) -> None:
        valid = isinstance(self.z, numbers.Real) and 0 < float(self.z) < np.inf
        require(valid, "z of Sigma", "must be finite and above 0", z=self.z)

    def observe(
        self, rows: np.ndarray, state: Moments | None = None, where: np.ndarray | None = None
    ) -> Moments:
        """Returns the moments of the values (g, n) and of those seen before."""
        rows = checked(rows, None if state is None else len(state.count), where, "Sigma")
        extent = MinMax().observe(rows, None if state is None else state.extent, where)
        seen = _moments(rows, where, extent)
        return seen if state is None else _joined(state, seen)

    def bounds(self, state: Moments, codes: Codes) -> tuple[np.ndarray, np.ndarray]:
        """Returns (low, high), float64 (g,)."""
        reach = self.z * np.sqrt(state.deviation / np.maximum(state.count, 1))
        low = np.maximum(state.mean - reach, state.extent.low)
        return closed(low, np.minimum(state.mean + reach, state.extent.high), codes)


def _moments(rows: np.ndarray, where: np.ndarray | None, extent: Extent) -> Moments:
    present = np.True_ if where is None else where
    count = np.broadcast_to(present, rows.shape).sum(axis=1)
    divisor = np.maximum(count, 1)
    mean = rows.sum(axis=1, where=present, dtype=np.float64) / divisor
    deviation = ((rows - mean[:, None]) ** 2).sum(axis=1, where=present)
    return Moments(extent, count, mean, deviation)


def _joined(a: Moments, b: Moments) -> Moments:
    """Chan, Golub and LeVeque 1979: no difference of large squares."""
    count = a.count + b.count
    share = b.count / np.maximum(count, 1)
    gap = b.mean - a.mean
    deviation = a.deviation + b.deviation + gap**2 * a.count * share
    return Moments(b.extent, count, a.mean + gap * share, deviation)
