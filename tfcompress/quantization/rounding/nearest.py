"""To the nearest point."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from tfcompress.quantization.grid import Grid
from tfcompress.quantization.rounding import ROUNDINGS


@ROUNDINGS.register("nearest")
@dataclasses.dataclass(frozen=True)
class Nearest:
    """Moves each weight to the nearest point of its grid, ties to the even one, as TFLite does.

    The error of a weight in range is at most s / 2, in mean square s^2 / 12.

    >>> from tfcompress.quantization.grid import grid
    >>> Nearest().round(np.array([-1.5, 0.5, 0.6]), grid(-127.0, 127.0)).tolist()
    [-2, 0, 1]
    """

    needs_inputs: ClassVar[bool] = False
    overshoot: ClassVar[int] = 0

    def round(self, weights: np.ndarray, grid: Grid, inputs: Any = None) -> np.ndarray:
        """Returns the codes, int32 of the weights' shape."""
        return grid.clip(np.rint(grid.steps(weights)))
