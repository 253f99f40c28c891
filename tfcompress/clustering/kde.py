"""Clustering by density: the valleys of a kernel density estimate are the borders."""

import dataclasses
import math

import numpy as np

from tfcompress.clustering import METHODS, arrays, landmarks
from tfcompress.clustering.codebook import Codebook
from tfcompress.clustering.compiled import compiled
from tfcompress.errors import require

_WIDEST = 8.0  # bandwidths from which on a Gaussian adds nothing: exp(-32) = 1e-14
# The critical bandwidth is sought between Silverman's over and times this; each of the halvings
# takes the square root of the ratio between the two ends: one part in 10,000 is left.
_RANGE = 1e5
_HALVINGS = 18


@METHODS.register("kde")
@dataclasses.dataclass(frozen=True)
class KernelDensity:
    """Cuts a kernel's weights where few of them are: each mode of their density is a cluster.

    The density is a sum of Gaussians around the weights. How many modes it has depends on their
    `bandwidth`, in units of the weights' standard deviation: "silverman" takes 0.9 min(1, IQR /
    1.34) n^(-1/5) for n weights (the interquartile range in the same units), "critical" the
    smallest with no more than `clusters` modes. A kernel whose density has one mode, as that of
    most trained kernels, becomes one value under "silverman". Where there are more modes than
    `clusters`, the ones whose union adds least error are joined. Blocks (d > 1) are cut along
    their axis of largest variance.

    `clusters`: the most there may be, in [2, 512].

    Sources: Silverman 1986, "Density estimation", equation 3.31; Silverman 1981, "Using kernel
    density estimates to investigate multimodality" (the critical bandwidth).

    >>> values = np.array([[0.0], [0.1], [0.2], [5.0], [5.1]], np.float32)
    >>> KernelDensity(clusters=4, bandwidth=0.1).fit(values).centroids.tolist()
    [[0.10000000149011612], [5.050000190734863]]
    """

    clusters: int = 16
    bandwidth: float | str = "silverman"

    def __post_init__(self) -> None:
        arrays.check_whole(self, "clusters", 2, landmarks.CLUSTERS)
        width = self.bandwidth
        known = width in ("silverman", "critical")
        real = isinstance(width, int | float) and 0 < width < math.inf
        rule = "must be 'silverman', 'critical' or a number above 0"
        require(known or real, "bandwidth of KernelDensity", rule, bandwidth=width)

    def fit(
        self,
        blocks: np.ndarray,
        sample_weight: np.ndarray | None = None,
        start: Codebook | None = None,
    ) -> Codebook:
        """Returns the codebook of `blocks`, float (n, d) and finite, at least one.

        `sample_weight` (n,), not negative and not all zero, says how much each block counts. The
        valleys do not depend on a `start`.
        """
        blocks, sample_weight = arrays.checked(blocks, sample_weight, "KernelDensity")
        seen = landmarks.Landmarks.of(blocks, sample_weight)
        if len(seen.points) <= self.clusters:
            return seen.codebook(np.arange(len(seen.points)))
        axis = arrays.principal(seen.points, seen.masses)
        positions = seen.points @ axis
        order = np.argsort(positions, kind="stable")
        width = self._width(positions[order], seen.masses[order])
        labels = np.empty(len(positions), np.int64)
        labels[order] = modes(positions[order], seen.masses[order], width)
        return landmarks.merged(seen, labels, self.clusters)

    def _width(self, positions: np.ndarray, masses: np.ndarray) -> float:
        """Returns the bandwidth in the units of the positions, which ascend."""
        if self.bandwidth == "silverman":
            return silverman(positions, masses)
        if self.bandwidth == "critical":
            return self._critical(positions, masses, silverman(positions, masses))
        return float(self.bandwidth) * _deviation(positions, masses)

    def _critical(self, positions: np.ndarray, masses: np.ndarray, guess: float) -> float:
        """Returns the smallest bandwidth with at most `clusters` modes: they fall as it grows."""

        def few(width: float) -> bool:
            return modes(positions, masses, width)[-1] < self.clusters

        low, high = guess / _RANGE, guess * _RANGE
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if few(middle) else (middle, high)
        return high


def silverman(positions: np.ndarray, masses: np.ndarray) -> float:
    """Returns the bandwidth 0.9 min(deviation, IQR / 1.34) n^(-1/5) of ascending positions.

    0 where they are all one. The masses add up to n.
    """
    deviation = _deviation(positions, masses)
    ends = np.cumsum(masses)
    quarter, rest = positions[np.searchsorted(ends, ends[-1] * np.array([0.25, 0.75]))]
    spread = min(deviation, (rest - quarter) / 1.34) or deviation
    return 0.9 * spread * ends[-1] ** -0.2


def _deviation(positions: np.ndarray, masses: np.ndarray) -> float:
    center = np.average(positions, weights=masses)
    return math.sqrt(np.average((positions - center) ** 2, weights=masses))


def modes(positions: np.ndarray, masses: np.ndarray, width: float) -> np.ndarray:
    """Returns the number of the mode of each of ascending positions, from 0 on.

    A border lies at each local minimum of the density, looked for at the positions and halfway
    between neighbours.
    """
    sites = np.empty(2 * len(positions) - 1)
    sites[::2], sites[1::2] = positions, (positions[1:] + positions[:-1]) / 2
    heights = density(sites, positions, masses, width)
    falls = np.sign(np.diff(heights))
    moving = np.flatnonzero(falls)  # plateaus: from the last fall to the next rise
    turns = (falls[moving[:-1]] < 0) & (falls[moving[1:]] > 0)
    valleys = (moving[:-1][turns] + 1 + moving[1:][turns]) / 2
    return np.searchsorted(valleys, np.arange(0, len(sites), 2), side="left")


@compiled
def density(sites, positions, masses, width):
    """Returns the sum of Gaussians at ascending sites; positions ascend too."""
    heights = np.zeros(sites.size)
    begin = 0
    for i in range(sites.size):
        while begin < positions.size and positions[begin] < sites[i] - _WIDEST * width:
            begin += 1
        j = begin
        while j < positions.size and positions[j] <= sites[i] + _WIDEST * width:
            offset = (sites[i] - positions[j]) / width
            heights[i] += masses[j] * np.exp(-0.5 * offset * offset)
            j += 1
    return heights
