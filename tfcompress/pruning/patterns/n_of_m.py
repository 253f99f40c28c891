"""The n of m pattern."""

import dataclasses
import numbers

import numpy as np

from tfcompress.errors import require
from tfcompress.pruning import selection
from tfcompress.pruning.patterns import PATTERNS


@PATTERNS.register("n_of_m")
@dataclasses.dataclass(frozen=True)
class NOfM:
    """Leaves at most `n` non-zero weights in each `m` that follow each other along the inputs.

    Groups of `m` lie along the second to last axis, the input channels of dense and convolution
    kernels; the last group may be smaller. Where the last axis has size 1 (depthwise kernels,
    whose outputs see one channel each) they lie along the spatial positions instead.

    The full pattern's sparsity is 1 - n/m (`max_sparsity`). A smaller one asks for a share of the
    groups, sparsity / (1 - n/m): those that lose least. 1 <= n < m.

    Source: Mishra et al. 2021, "Accelerating sparse deep neural networks" (2 of 4).

    >>> NOfM(n=1, m=2).mask(np.array([[3.0], [1.0], [2.0], [4.0]]), sparsity=0.5).ravel()
    array([ True, False, False,  True])
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        whole = isinstance(self.n, numbers.Integral) and isinstance(self.m, numbers.Integral)
        require(
            whole and 1 <= self.n < self.m,
            "n and m of NOfM",
            "must be whole numbers with 1 <= n < m",
            n=self.n,
            m=self.m,
        )

    @property
    def max_sparsity(self) -> float:
        """The sparsity of the full pattern, 1 - n/m."""
        return 1 - self.n / self.m

    def mask(self, scores: np.ndarray, sparsity: float) -> np.ndarray:
        """Returns the mask; `sparsity` must be in [0, 1 - n/m]."""
        selection.check(scores, sparsity, "NOfM", self.max_sparsity)
        groups, real = self._groups(scores)
        loses = real & ~self._largest(groups)
        share = min(sparsity / self.max_sparsity, 1.0)
        losses = np.where(loses, groups, 0).sum(axis=1, dtype=np.float64)
        # Groups too short to lose anything obey already and are not counted.
        candidates = np.flatnonzero(loses.any(axis=1))
        chosen = selection.lowest(losses[candidates], round(share * candidates.size))
        keep = np.ones(groups.shape, bool)
        keep[candidates[chosen]] = ~loses[candidates[chosen]]
        return self._ungroup(keep, scores.shape)

    def _axes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Returns (before, along, after): the kernel's sizes around the axis of the groups."""
        size = int(np.prod(shape))
        if len(shape) < 2:
            return 1, size, 1
        if shape[-1] == 1 and len(shape) > 2:
            return 1, size // shape[-2], shape[-2]
        return size // (shape[-2] * shape[-1]), shape[-2], shape[-1]

    def _groups(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scores as (groups, m) and where these are weights, not filling."""
        before, along, after = self._axes(scores.shape)
        filling = -along % self.m
        lines = scores.reshape(before, along, after).transpose(0, 2, 1)
        padded = np.pad(lines, ((0, 0), (0, 0), (0, filling)))
        real = np.broadcast_to(np.arange(along + filling) < along, padded.shape)
        return padded.reshape(-1, self.m), real.reshape(-1, self.m)

    def _ungroup(self, groups: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        before, along, after = self._axes(shape)
        lines = groups.reshape(before, after, -1)[:, :, :along]
        return np.ascontiguousarray(lines.transpose(0, 2, 1)).reshape(shape)

    def _largest(self, groups: np.ndarray) -> np.ndarray:
        """Marks the n largest of each group; of equal ones, the last."""
        order = np.argsort(groups, axis=1, kind="stable")
        marked = np.zeros(groups.shape, bool)
        np.put_along_axis(marked, order[:, self.m - self.n :], True, axis=1)
        return marked
