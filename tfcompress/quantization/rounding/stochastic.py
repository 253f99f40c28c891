"""Up or down by chance."""

import dataclasses
import numbers
from typing import Any, ClassVar

import numpy as np

from tfcompress.errors import require
from tfcompress.quantization.grid import Grid
from tfcompress.quantization.rounding import ROUNDINGS


@ROUNDINGS.register("stochastic")
@dataclasses.dataclass(frozen=True)
class Stochastic:
    """Moves each weight up with the probability of its distance to the lower point: unbiased.

    floor(w / s + u) with u even in [0, 1), so that in range the mean of the result is w. The error
    is less than s, in mean square s^2 / 6. A weight that is a point of its grid stays. u depends on
    `seed` (at least 0) and the weights' shape alone: the same call gives the same codes.

    Source: Gupta et al. 2015, "Deep learning with limited numerical precision".

    >>> from tfcompress.quantization.grid import grid
    >>> float(Stochastic().round(np.full(10_000, 0.3), grid(-127.0, 127.0)).mean().round(2))
    0.3
    """

    seed: int = 0

    needs_inputs: ClassVar[bool] = False
    overshoot: ClassVar[int] = 0

    def __post_init__(self) -> None:
        valid = isinstance(self.seed, numbers.Integral) and self.seed >= 0
        rule = "must be a whole number, at least 0"
        require(valid, "seed of Stochastic", rule, seed=self.seed)

    def round(self, weights: np.ndarray, grid: Grid, inputs: Any = None) -> np.ndarray:
        """Returns the codes, int32 of the weights' shape."""
        steps = grid.steps(weights)
        chance = np.random.default_rng([self.seed, *steps.shape]).random(steps.shape)
        return grid.clip(np.floor(steps + chance))
