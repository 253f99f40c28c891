"""The distance of a filter to the geometric median of its layer."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from tfcompress.structured import slices
from tfcompress.structured.scores import SCORES

_ROUNDS = 200
_TOLERANCE = 1e-9  # of the points' spread


@SCORES.register("geometric_median")
@dataclasses.dataclass(frozen=True)
class GeometricMedian:
    """Channels go first whose filters the others can replace: those near the geometric median.

    score = distance of a filter to the point whose distances to all filters of the kernel have the
    smallest sum. Only the kernels that make the channel count (out): what is compared is the
    filters among themselves. Not small filters go first, as with magnitude, but common ones.

    Source: He et al. 2019, "Filter pruning via geometric median" (FPGM).
    """

    needs: ClassVar[str] = "weights"
    normalise: ClassVar[bool] = True

    def score(self, group: Any, evidence: Any = None) -> np.ndarray:
        """Returns one number per channel, of mean 1: float64 (group.size,)."""
        filters = [m for m in group.members if m.role == "out" and slices.multiplies(m)]
        distances = (distances_to_median(slices.side_by_side(m, group.size)) for m in filters)
        return slices.average(group, distances, "kernels that make its channels")


def distances_to_median(points: np.ndarray) -> np.ndarray:
    """Returns the distance of each row of `points` (n, d) to their geometric median: float64 (n,).

    Weiszfeld's algorithm with Vardi and Zhang's step where the median meets a point (2000, "The
    multivariate L1-median and associated data depth"), which without it divides by zero.

    >>> distances_to_median(np.array([[0.0], [1.0], [5.0]])).round(6)
    array([1., 0., 4.])
    """
    centred = points - points.mean(axis=0, dtype=np.float64)
    lengths = np.einsum("nd,nd->n", centred, centred)
    spread = np.sqrt(lengths.max(initial=0.0))
    median = np.zeros(centred.shape[1])
    for _ in range(_ROUNDS if spread > 0 else 0):
        distances = _distances(centred, lengths, median)
        apart = distances > 1e-7 * spread
        weights = np.divide(1.0, distances, out=np.zeros_like(distances), where=apart)
        total = weights.sum()
        pull = weights @ centred - total * median
        met = np.count_nonzero(~apart)
        force = np.linalg.norm(pull)
        if force <= met:
            break  # the points that it lies on hold it
        step = (1 - met / force) * pull / total
        median = median + step
        if np.linalg.norm(step) <= _TOLERANCE * spread:
            break
    return _distances(centred, lengths, median)


def _distances(points: np.ndarray, lengths: np.ndarray, median: np.ndarray) -> np.ndarray:
    # Multiplied out, it needs no second array as large as the points.
    squares = lengths - 2 * (points @ median) + median @ median
    return np.sqrt(np.maximum(squares, 0))
