"""The n of m pattern."""

import dataclasses
import math
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
        before, along, after = _around_inputs(scores.shape)
        filling = -along % self.m
        groups = np.pad(
            scores.reshape(before, along, after),
            ((0, 0), (0, filling), (0, 0)),
            constant_values=-np.inf,
        ).reshape(before, -1, self.m, after)
        loses = ~self._largest(groups) & np.isfinite(groups)
        losses = np.where(loses, groups, 0).sum(axis=2, dtype=np.float64)
        # Groups too short to lose anything obey already and are not counted.
        candidates = loses.any(axis=2)
        share = min(sparsity / self.max_sparsity, 1.0)
        chosen = np.zeros(candidates.shape, bool)
        chosen[candidates] = selection.lowest(
            losses[candidates], round(share * np.count_nonzero(candidates))
        )
        keep = ~(loses & chosen[:, :, None])
        return keep.reshape(before, -1, after)[:, :along].reshape(scores.shape)

    def _largest(self, groups: np.ndarray) -> np.ndarray:
        """Marks the n largest of each group, along axis 2; of equal ones, the last."""
        marked = np.empty(groups.shape, bool)
        for i in range(self.m):
            larger = np.zeros(groups[:, :, 0].shape, np.int32)
            for j in range(self.m):
                if j != i:
                    beats = np.greater if j < i else np.greater_equal
                    larger += beats(groups[:, :, j], groups[:, :, i])
            np.less(larger, self.n, out=marked[:, :, i])
        return marked


def _around_inputs(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns the kernel's sizes before, along and after the axis that groups lie along."""
    size = math.prod(shape)
    if len(shape) < 2:
        return 1, size, 1
    if shape[-1] == 1 and len(shape) > 2:
        return 1, size // shape[-2], shape[-2]
    return size // (shape[-2] * shape[-1]), shape[-2], shape[-1]
