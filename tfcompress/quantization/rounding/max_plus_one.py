"""Integer half-up on a grid that ends one code too early."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from tfcompress.quantization.grid import Grid
from tfcompress.quantization.rounding import ROUNDINGS


@ROUNDINGS.register("max_plus_one")
@dataclasses.dataclass(frozen=True)
class MaxPlusOne:
    """Rounds half up, floor((2 w / s + 1) / 2), on a grid whose largest weight is clipped.

    The scale is max|w| / 2**(bits - 1), not / (2**(bits - 1) - 1): the largest weight falls one
    past the largest code and is clipped to it. Where max|w| is a power of two, so is the scale. The
    error in range is at most s / 2, in mean square s^2 / 12; that of the largest weight is s. For
    symmetric codes only.

    >>> from tfcompress.quantization.grid import grid
    >>> MaxPlusOne().round(np.array([-0.5, 0.5, 128.0]), grid(-128.0, 128.0, overshoot=1)).tolist()
    [0, 1, 127]
    """

    needs_inputs: ClassVar[bool] = False
    overshoot: ClassVar[int] = 1

    def round(self, weights: np.ndarray, grid: Grid, inputs: Any = None) -> np.ndarray:
        """Returns the codes, int32 of the weights' shape."""
        return grid.clip(np.floor((2 * grid.steps(weights) + 1) / 2))
