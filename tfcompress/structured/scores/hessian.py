"""The second-order score of a channel."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from tfcompress.errors import require
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

    `normalise`: whether parts and groups are divided by their means, so that all layers count
    alike. If not, scores are rises of the loss, which add up over groups: what `per` of
    `tfc.prune_channels` weighs against the cost.

    Sources: LeCun et al. 1990, "Optimal brain damage"; Theis et al. 2018, "Faster gaze prediction
    with dense networks and Fisher pruning".
    """

    normalise: bool = True

    needs: ClassVar[str] = "gradients"

    def __post_init__(self) -> None:
        is_bool = isinstance(self.normalise, bool)
        owner = "normalise of Hessian"
        require(is_bool, owner, "must be true or false", normalise=self.normalise)

    def score(self, group: Any, evidence: Any) -> np.ndarray:
        """Returns one number per channel, of mean 1 if normalised: float64 (group.size,)."""
        parts = evidence.of("fisher", group)
        return slices.average(group, parts, "weights that are learnt", divide=self.normalise)
