"""Ward's tree of weighted points: the pair whose union adds the least squared error is joined."""

import dataclasses

import numpy as np

from tfcompress.clustering.compiled import compiled


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """`pairs` int64 (m - 1, 2) of points whose clusters are joined, in the order of `costs`.

    `costs` float64 (m - 1,) is the squared error that each union adds, ascending.
    """

    pairs: np.ndarray
    costs: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, masses: np.ndarray) -> "Tree":
        """Returns the tree of points (m, d) with positive masses (m,).

        Clusters a and b with means p cost m_a m_b / (m_a + m_b) |p_a - p_b|^2 to join. Chains of
        nearest neighbours find all unions in m^2 comparisons and no matrix (Murtagh 1983).
        """
        pairs, costs = _chain(np.array(points, np.float64, order="C"), np.array(masses, np.float64))
        order = np.argsort(costs, kind="stable")
        return cls(pairs[order], costs[order])

    def labels(self, clusters: int) -> np.ndarray:
        """Returns the cluster of each point, cut where `clusters` are left."""
        from scipy import sparse

        count = len(self.costs) + 1
        joined = self.pairs[: max(0, count - clusters)]
        graph = sparse.coo_array(
            (np.ones(len(joined)), (joined[:, 0], joined[:, 1])), (count, count)
        )
        return sparse.csgraph.connected_components(graph, directed=False)[1]

    def clusters_within(self, error: float) -> int:
        """Returns the fewest clusters whose squared error is at most `error`."""
        joined = np.searchsorted(np.cumsum(self.costs), error, side="right")
        return len(self.costs) + 1 - int(joined)


@compiled
def _chain(points, masses):
    count, size = points.shape
    pairs, costs = np.empty((count - 1, 2), np.int64), np.empty(count - 1)
    alive, place = np.arange(count), np.arange(count)
    left = count
    chain, length = np.empty(count, np.int64), 0

    def cost(a, b):
        squares = 0.0
        for x in range(size):
            squares += (points[a, x] - points[b, x]) ** 2
        return masses[a] * masses[b] / (masses[a] + masses[b]) * squares

    for step in range(count - 1):
        if length == 0:
            chain[0], length = alive[0], 1
        while True:
            i = chain[length - 1]
            j, best = -1, np.inf
            if length > 1:  # the one before stays the nearest unless another is nearer still
                j = chain[length - 2]
                best = cost(i, j)
            for position in range(left):
                c = alive[position]
                if c != i and c != j:
                    added = cost(i, c)
                    if added < best or j < 0:
                        best, j = added, c
            if length > 1 and j == chain[length - 2]:
                break
            chain[length] = j
            length += 1
        length -= 2
        pairs[step, 0], pairs[step, 1], costs[step] = i, j, best
        total = masses[i] + masses[j]
        for x in range(size):
            points[j, x] = (masses[i] * points[i, x] + masses[j] * points[j, x]) / total
        masses[j] = total
        left -= 1  # i leaves: the last of the living takes its place
        alive[place[i]] = alive[left]
        place[alive[left]] = place[i]
    return pairs, costs
