"""The layer-adaptive magnitude of a channel."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from tfcompress.pruning.scores.lamp import Lamp as WeightLamp
from tfcompress.structured.scores import SCORES
from tfcompress.structured.scores.magnitude import Magnitude


@SCORES.register("lamp")
@dataclasses.dataclass(frozen=True)
class Lamp:
    """Channels go first that matter least to their own group, over all groups at once.

    score = m^2 / sum of the squares in the group that are not smaller than m^2, in [0, 1], where m
    is the channel's magnitude over the members of its group (see `Magnitude`, norm 2, which says
    which count). Within a group the order is that of magnitude. Comparable between groups as it
    is: the strongest channel of each has score 1, so that none is emptied.

    Source: Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", for channels
    instead of weights.
    """

    needs: ClassVar[str] = "weights"
    normalise: ClassVar[bool] = False

    def score(self, group: Any, evidence: Any = None) -> np.ndarray:
        """Returns the scores: float64 (group.size,)."""
        return WeightLamp().score(Magnitude().score(group))
