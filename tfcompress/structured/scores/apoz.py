"""The share of zeros in a channel's activation."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from tfcompress.errors import InputError
from tfcompress.structured.scores import SCORES


@SCORES.register("apoz")
@dataclasses.dataclass(frozen=True)
class Apoz:
    """Channels go first that are silent most often: 1 - average percentage of zeros.

    The activation is read where it enters the layers that read the channel (in), over samples and
    positions; where several read it, their shares are averaged. What makes or scales the channel
    does not count: its effect is in the activation. Made for ReLU: an activation that is never
    exactly zero gives every channel score 1, and no order.

    Source: Hu et al. 2016, "Network trimming".
    """

    needs: ClassVar[str] = "activations"
    normalise: ClassVar[bool] = True

    def score(self, group: Any, evidence: Any) -> np.ndarray:
        """Returns the share of activations that are not zero: float64 (group.size,), in [0, 1]."""
        zeros = evidence.of("zeros", group)
        if not len(zeros):
            raise InputError(
                f"Group '{group.name}' must be read by a layer at its input for the channel score "
                "'apoz'; its channels stay inside one layer"
            )
        return 1 - np.mean(zeros, axis=0)
