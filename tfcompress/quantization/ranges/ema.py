"""A moving average of the batches' ranges."""

import dataclasses

import numpy as np

from tfcompress.errors import require
from tfcompress.quantization.grid import Codes
from tfcompress.quantization.ranges import RANGES, checked, closed
from tfcompress.quantization.ranges.min_max import Extent


@RANGES.register("ema")
@dataclasses.dataclass(frozen=True)
class Ema:
    """Covers what a batch usually covers: an exponential moving average of its ends.

    The first batch sets the ends; each further one moves them by `1 - decay` of the way to its own:
    end = decay * end + (1 - decay) * batch's end. Rare outliers are clipped. Weights are one batch:
    the same as `min_max`.

    `decay`: in [0, 1).

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3.1.

    >>> method = Ema(decay=0.5)
    >>> state = method.observe(np.array([[8.0]]), method.observe(np.array([[4.0]])))
    >>> method.bounds(state, Codes())[1]
    array([6.])
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, "decay of Ema", "must be in [0, 1)", decay=self.decay)

    def observe(
        self, rows: np.ndarray, state: Extent | None = None, where: np.ndarray | None = None
    ) -> Extent:
        """Returns the ends moved towards those of the batch (g, n)."""
        rows = checked(rows, None if state is None else len(state.low), where, "Ema")
        seen = Extent.of(rows, where)
        if state is None:
            return seen
        low, high = (
            self.decay * before + (1 - self.decay) * now
            for before, now in ((state.low, seen.low), (state.high, seen.high))
        )
        return Extent(low, high)

    def bounds(self, state: Extent, codes: Codes) -> tuple[np.ndarray, np.ndarray]:
        """Returns (low, high), float64 (g,)."""
        return closed(state.low, state.high, codes)
