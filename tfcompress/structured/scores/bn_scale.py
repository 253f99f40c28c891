"""The scale that BatchNorm gives a channel."""

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np

from tfcompress.structured import slices
from tfcompress.structured.scores import SCORES


@SCORES.register("bn_scale")
@dataclasses.dataclass(frozen=True)
class BnScale:
    """Channels go first that BatchNorm scales down most: |gamma|.

    Only the gammas of the group's BatchNorm layers count: they give a channel, brought to unit
    variance, its scale. Where a channel meets several, each counts relative to its layer's mean.
    Train with an L1 penalty on gamma for the sharpest order. The paper compares gammas of all
    layers as they are after such a training; without it that empties the layers whose gammas are
    small as a whole, so they are compared relative to their group here. A group without gamma is
    an `InputError`.

    Source: Liu et al. 2017, "Learning efficient convolutional networks through network slimming".
    """

    needs: ClassVar[str] = "weights"
    normalise: ClassVar[bool] = True

    def score(self, group: Any, evidence: Any = None) -> np.ndarray:
        """Returns one number per channel, of mean 1: float64 (group.size,)."""
        gammas = (
            slices.per_channel(member, group.size, np.abs(slices.value(member)))
            for member in group.members
            if _is_gamma(member)
        )
        return slices.average(group, gammas, "a BatchNormalization with scale=True for bn_scale")


def _is_gamma(member: Any) -> bool:
    norm = isinstance(member.layer, keras.layers.BatchNormalization)
    return norm and member.variable.name == "gamma"
