"""The second-order score of a channel."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from tfcompress.structured import slices
from tfcompress.structured.scores import SCORES


@SCORES.register("hessian")
@dataclasses.dataclass(frozen=True)
class Hessian:
    """Channels go first whose removal raises the loss least, to second order at a minimum.

    score = sum of w^2 F / 2 over the channel's slice, F = mean over batches of g^2: the diagonal
    of the Fisher information in place of the Hessian's. g is the gradient of a batch's mean loss;
    the smaller the batches, the nearer F is to the Fisher information of single samples. All that
    is learnt counts: kernels with their biases (out, each), gammas with their betas (each), and the
    rows of the layers that read the channel (in).

    Sources: LeCun et al. 1990, "Optimal brain damage"; Theis et al. 2018, "Faster gaze prediction
    with dense networks and Fisher pruning".
    """

    needs: ClassVar[str] = "gradients"
    normalise: ClassVar[bool] = True

    def score(self, group: Any, evidence: Any) -> np.ndarray:
        """Returns one number per channel, of mean 1: float64 (group.size,)."""
        return slices.average(group, evidence.of("fisher", group), "weights that are learnt")
