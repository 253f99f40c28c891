"""The first-order Taylor score of a channel."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from tfcompress.errors import require
from tfcompress.structured import slices
from tfcompress.structured.scores import SCORES


@SCORES.register("gradient")
@dataclasses.dataclass(frozen=True)
class Gradient:
    """Channels go first whose removal changes the loss least, to first order.

    score = mean over batches of |sum of w g over the channel's slice|, g the gradient of the
    batch's mean loss: w g summed is the change of the loss when the slice becomes zero. The weights
    of one layer that become zero together are summed before the magnitude is taken: kernel and bias
    (out), gamma and beta (each), the next layer's rows (in). Those count that silence the channel
    when they are zero, as its removal does; so kernels before a BatchNorm do not: a kernel of zeros
    gives minus the moving mean, normalised. (ResNet-8 with 1.3x fewer MACs, before fine-tuning: an
    accuracy of 0.26 with them, 0.41 without.)

    `normalise`: whether parts and groups are divided by their means, so that all layers count
    alike. If not, scores are changes of the loss, which add up over groups: what `per` of
    `tfc.prune_channels` weighs against the cost.

    Source: Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient
    inference", and 2019, "Importance estimation for neural network pruning".
    """

    normalise: bool = True

    needs: ClassVar[str] = "gradients"

    def __post_init__(self) -> None:
        is_bool = isinstance(self.normalise, bool)
        owner = "normalise of Gradient"
        require(is_bool, owner, "must be true or false", normalise=self.normalise)

    def score(self, group: Any, evidence: Any) -> np.ndarray:
        """Returns one number per channel, of mean 1 if normalised: float64 (group.size,)."""
        parts = evidence.of("taylor", group)
        return slices.average(group, parts, "weights that are learnt", divide=self.normalise)
